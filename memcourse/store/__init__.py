"""The rows of a datastore, in memory and on disk: what `memcourse.datastore` stands on.

documents   which entry has which id, and which document it came from
rows        keys and values in memory, and what any rows must offer
column      one file of equal rows that only grows, with its checksums
state       what is valid in a folder, as a value
files       the manifest, and the files that are valid only by it
on_disk     rows in a folder: one writer, builds that resume, replacing
"""
