"""`python -m memcourse` is `memcourse`; torchrun starts it this way too."""

from memcourse.course.cli import main

main()
