"""Several datastores searched as one: what does not fit one machine's memory, or was made by several processes.

    neighbours(q) = the k nearest of the union of each shard's k nearest

which are the k nearest of all, since an entry that is not among its own shard's k nearest has k nearer ones there.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from memcourse.datastore import Datastore, Neighbors, check_alike


class Shards:
    """Stores of the same dim, metric and model, in an order that counts: the same neighbours as from one store.

    Ids too are those of the one store to which everything done to the shards had been done, one shard after the other;
    a shard that grows shifts the ids of those behind it.
    Raises ValueError for no stores, and where they differ in dim, metric, values or model.
    """

    def __init__(self, stores: Sequence[Datastore]) -> None:
        check_alike(stores)
        self.stores = list(stores)

    def __len__(self) -> int:
        return sum(len(store) for store in self.stores)

    @property
    def dim(self) -> int:
        return self.stores[0].dim

    @property
    def metric(self) -> str:
        return self.stores[0].metric

    @property
    def made_by(self) -> str | None:
        return self.stores[0].made_by

    @property
    def device(self) -> torch.device:
        return self.stores[0].device

    def search(self, queries: Float[Tensor, "*queries dim"], k: int, *, rescore: bool = True) -> Neighbors:
        """As `Datastore.search`: (..., dim) -> distances and ids (..., k), values (..., k, ...)."""
        found, first_id = [], 0
        for store in self.stores:
            if len(store):
                part = store.search(queries, k, rescore=rescore)
                found.append(part._replace(ids=torch.where(part.ids < 0, part.ids, part.ids + first_id)))
            first_id += store.next_id
        if not found:
            return self.stores[0].search(queries, k)
        # Ids rise from shard to shard, so a stable sort leaves equal distances in the order of their ids.
        along = queries.ndim - 1
        distances, ids, values = (torch.cat(parts, dim=along) for parts in zip(*found, strict=True))
        _, order = distances.sort(dim=along, stable=True)
        order = order.narrow(along, 0, min(k, order.shape[along]))
        of_values = order.reshape(*order.shape, *[1] * (values.ndim - order.ndim))
        return Neighbors(
            distances.gather(along, order), ids.gather(along, order), values.take_along_dim(of_values, along)
        )
