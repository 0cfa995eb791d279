"""Qdrant for tests: its own engine (qdrant-edge-py) behind its own gRPC protocol (qdrant-client), on one node.

    python qdrant_server.py DATA PORT [--api-key KEY] [--tls CERTIFICATE KEY]

What is real: the engine with its storage, write-ahead log, filters, conditional updates, payload indexes and search;
the protocol; the status codes. What is ours: this file, and `qdrant_protocol.py`, which translates one into the other.
One shard, one replica, no optimizer. An update is answered when the engine has it in its log, from where a start after
a SIGKILL takes it again.

DATA/NAME holds one collection: `collection.json` says how it was created, `shard` is the engine's. With a file
DATA/FAULT the status of every collection is the text in it: `Red`, `Yellow`, `Grey`.
"""

import argparse
import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import qdrant_edge as edge
from qdrant_client.grpc import collections_pb2 as collections
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc
from qdrant_client.grpc import points_pb2 as points
from qdrant_client.grpc import qdrant_pb2, qdrant_pb2_grpc

from qdrant_protocol import (
    UPDATES,
    Refused,
    from_filter,
    from_id,
    invalid,
    optional,
    retrieved,
    scored,
    to_id,
    with_payload,
    with_vectors,
)

VERSION = "1.20.0"
# By the numbers that the protocol gives them.
SCHEMAS = ["Keyword", "Integer", "Float", "Geo", "Text", "Bool", "Datetime", "Uuid"]
DISTANCES = {1: edge.Distance.Cosine, 2: edge.Distance.Euclid, 3: edge.Distance.Dot, 4: edge.Distance.Manhattan}


class Collection:
    """One collection, open."""

    def __init__(self, path):
        self.path = path
        self.settings = json.loads((path / "collection.json").read_text())
        self.shard = edge.EdgeShard.load(str(path / "shard"))
        # The engine puts updates into its log in the order in which it is given them.
        self.updates = threading.Lock()
        self.operations = 0

    @staticmethod
    def create(path, request):
        settings = {"vectors": vectors_of(request), "fields": {}}
        unfinished = path.with_name(f".{path.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        params = {
            name: edge.EdgeVectorParams(vector["size"], DISTANCES[vector["distance"]])
            for name, vector in settings["vectors"].items()
        }
        edge.EdgeShard.create(str(unfinished / "shard"), edge.EdgeConfig(vectors=params)).close()
        (unfinished / "collection.json").write_text(json.dumps(settings))
        unfinished.rename(path)
        return Collection(path)

    def update(self, operation):
        with self.updates:
            self.shard.update(operation)
            self.operations += 1
            return self.operations

    def set_field(self, name, kind):
        """Remembers an index, for the description of the collection."""
        with self.updates:
            self.settings["fields"].pop(name, None)
            if kind is not None:
                self.settings["fields"][name] = kind
            unfinished = self.path / "collection.json.new"
            unfinished.write_text(json.dumps(self.settings))
            unfinished.rename(self.path / "collection.json")

    def info(self, status):
        vectors = {name: collections.VectorParams(**vector) for name, vector in self.settings["vectors"].items()}
        config = collections.VectorsConfig(params_map=collections.VectorParamsMap(map=vectors))
        if list(vectors) == [""]:
            config = collections.VectorsConfig(params=vectors[""])
        params = collections.CollectionParams(shard_number=1, replication_factor=1, vectors_config=config)
        fields = {name: collections.PayloadSchemaInfo(data_type=kind) for name, kind in self.settings["fields"].items()}
        return collections.CollectionInfo(
            status=status,
            optimizer_status=collections.OptimizerStatus(ok=True),
            segments_count=self.shard.info().segments_count,
            points_count=self.shard.info().points_count,
            config=collections.CollectionConfig(params=params),
            payload_schema=fields,
        )


def vectors_of(request):
    config = request.vectors_config
    listed = {"": config.params} if config.HasField("params") else dict(config.params_map.map)
    for params in listed.values():
        if params.size == 0 or params.distance not in DISTANCES:
            raise invalid("Validation error: a vector needs a size and a distance")
    return {name: {"size": params.size, "distance": params.distance} for name, params in listed.items()}


class Store:
    """All collections."""

    def __init__(self, data):
        self.data = data
        self.changes = threading.Lock()
        found = [path for path in sorted(data.iterdir()) if (path / "collection.json").exists()]
        self.open = {path.name: Collection(path) for path in found if not path.name.startswith(".")}

    def __getitem__(self, name):
        collection = self.open.get(name)
        if collection is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Not found: Collection `{name}` doesn't exist!")
        return collection

    def create(self, request):
        name = request.collection_name
        with self.changes:
            if name in self.open:
                message = f"Wrong input: Collection `{name}` already exists!"
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, message)
            self.open[name] = Collection.create(self.data / name, request)

    def delete(self, name):
        with self.changes:
            collection = self.open.pop(name, None)
            if collection is None:
                return False
            with collection.updates:
                collection.shard.close()
            shutil.rmtree(collection.path)
            return True

    def status(self):
        fault = self.data / "FAULT"
        name = fault.read_text().strip() if fault.exists() else "Green"
        return collections.CollectionStatus.Value(name)


def answering(handler):
    """Answers with the status that the real server gives for what went wrong."""

    def handle(self, request, context):
        try:
            return handler(self, request)
        except Refused as refused:
            print(f"{handler.__name__}: {refused}", file=sys.stderr, flush=True)
            context.abort(refused.code, str(refused))
        except Exception as error:  # The engine's have no common class.
            text = str(error)
            if any(sign in text for sign in ("Vector dimension error", "Not existing vector", "No range index")):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Wrong input: {text}")
            print(f"{handler.__name__}: {error!r}", file=sys.stderr, flush=True)
            context.abort(grpc.StatusCode.INTERNAL, f"Service internal error: {text}")

    return handle


class Collections(collections_service_pb2_grpc.CollectionsServicer):
    def __init__(self, store):
        self.store = store

    @answering
    def Get(self, request):
        info = self.store[request.collection_name].info(self.store.status())
        return collections.GetCollectionInfoResponse(result=info)

    @answering
    def List(self, request):
        listed = [collections.CollectionDescription(name=name) for name in list(self.store.open)]
        return collections.ListCollectionsResponse(collections=listed)

    @answering
    def Create(self, request):
        self.store.create(request)
        return collections.CollectionOperationResponse(result=True)

    @answering
    def Delete(self, request):
        return collections.CollectionOperationResponse(result=self.store.delete(request.collection_name))

    @answering
    def CollectionExists(self, request):
        exists = collections.CollectionExists(exists=request.collection_name in self.store.open)
        return collections.CollectionExistsResponse(result=exists)


class Points(points_service_pb2_grpc.PointsServicer):
    def __init__(self, store):
        self.store = store

    def result(self, request, operation):
        status = points.UpdateStatus.Completed if request.wait else points.UpdateStatus.Acknowledged
        return points.UpdateResult(operation_id=operation, status=status)

    def update(self, request, operation):
        done = self.store[request.collection_name].update(operation)
        return points.PointsOperationResponse(result=self.result(request, done))

    @answering
    def UpdateBatch(self, request):
        collection = self.store[request.collection_name]
        kinds = [(update, update.WhichOneof("operation")) for update in request.operations]
        if any(kind not in UPDATES for _, kind in kinds):
            raise invalid("an operation that this server does not know")
        # All are understood before the first is done.
        operations = [UPDATES[kind](getattr(update, kind)) for update, kind in kinds]
        done = [self.result(request, collection.update(operation)) for operation in operations]
        return points.UpdateBatchResponse(result=done)

    @answering
    def CreateFieldIndex(self, request):
        collection = self.store[request.collection_name]
        schema = getattr(edge.PayloadSchemaType, SCHEMAS[request.field_type])
        done = collection.update(edge.UpdateOperation.create_field_index(request.field_name, schema))
        # The numbers of the two lists of kinds differ by the unknown one.
        collection.set_field(request.field_name, request.field_type + 1)
        return points.PointsOperationResponse(result=self.result(request, done))

    @answering
    def DeleteFieldIndex(self, request):
        collection = self.store[request.collection_name]
        done = collection.update(edge.UpdateOperation.delete_field_index(request.field_name))
        collection.set_field(request.field_name, None)
        return points.PointsOperationResponse(result=self.result(request, done))

    @answering
    def Get(self, request):
        shard = self.store[request.collection_name].shard
        ids = [from_id(point) for point in request.ids]
        found = shard.retrieve(ids, with_payload(request), with_vectors(request))
        return points.GetResponse(result=[retrieved(record) for record in found])

    @answering
    def Scroll(self, request):
        order = None
        if request.HasField("order_by"):
            down = request.order_by.direction == points.Direction.Desc
            direction = edge.Direction.Desc if down else edge.Direction.Asc
            order = edge.OrderBy(request.order_by.key, direction)
        offset = from_id(request.offset) if request.HasField("offset") else None
        limit = request.limit if request.HasField("limit") else 10
        filtered = from_filter(optional(request, "filter"))
        scroll = edge.ScrollRequest(offset, limit, filtered, with_payload(request), with_vectors(request), order)
        found, following = self.store[request.collection_name].shard.scroll(scroll)
        page = points.ScrollResponse(result=[retrieved(record) for record in found])
        if following is not None and order is None:
            page.next_page_offset.CopyFrom(to_id(following))
        return page

    @answering
    def Count(self, request):
        shard = self.store[request.collection_name].shard
        counted = shard.count(edge.CountRequest(True, from_filter(optional(request, "filter"))))
        return points.CountResponse(result=points.CountResult(count=counted))

    @answering
    def Query(self, request):
        shard = self.store[request.collection_name].shard
        using = optional(request, "using")
        nearest = request.query.nearest
        match nearest.WhichOneof("variant"):
            case "dense":
                near, own = list(nearest.dense.data), None
            case "id":
                own = from_id(nearest.id)
                found = shard.retrieve([own], False, True)
                near = (found[0].vector or {}).get(using or "") if found else None
                if near is None:
                    raise Refused(grpc.StatusCode.NOT_FOUND, f"Not found: No point with id {own} found")
            case _:
                raise invalid("this server answers queries near to a dense vector or a point")
        filtered = from_filter(optional(request, "filter"))
        if own is not None:
            filtered = edge.Filter(must=[filtered] if filtered else None, must_not=[edge.HasIdCondition({own})])
        query = edge.QueryRequest(
            limit=request.limit if request.HasField("limit") else 10,
            offset=request.offset,
            query=edge.Query.Nearest(near, using),
            with_vector=with_vectors(request),
            with_payload=with_payload(request),
            filter=filtered,
            score_threshold=optional(request, "score_threshold"),
        )
        return points.QueryResponse(result=[scored(point) for point in shard.query(query)])


def plain_update(name, translate):
    def handler(self, request):
        return self.update(request, translate(request))

    handler.__name__ = name
    setattr(Points, name, answering(handler))


for name, translate in UPDATES.items():
    plain_update(name.replace("_points", "").title().replace("_", ""), translate)


class Health(qdrant_pb2_grpc.QdrantServicer):
    def HealthCheck(self, request, context):
        return qdrant_pb2.HealthCheckReply(title="qdrant - vector search engine", version=VERSION)


class Guard(grpc.ServerInterceptor):
    """Lets nobody in without the key."""

    def __init__(self, key):
        self.key = key
        refuse = lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
        self.refusal = grpc.unary_unary_rpc_method_handler(refuse)

    def intercept_service(self, continuation, details):
        allowed = ("api-key", self.key) in details.invocation_metadata
        return continuation(details) if allowed else self.refusal


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--api-key")
    parser.add_argument("--tls", nargs=2, type=Path)
    arguments = parser.parse_args()

    store = Store(arguments.data)
    guards = [Guard(arguments.api_key)] if arguments.api_key else []
    # Large batches are what tests send. Two servers on one port would take turns.
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", -1)]
    options.append(("grpc.so_reuseport", 0))
    server = grpc.server(ThreadPoolExecutor(16), interceptors=guards, options=options)
    qdrant_pb2_grpc.add_QdrantServicer_to_server(Health(), server)
    collections_service_pb2_grpc.add_CollectionsServicer_to_server(Collections(store), server)
    points_service_pb2_grpc.add_PointsServicer_to_server(Points(store), server)
    address = f"127.0.0.1:{arguments.port}"
    if arguments.tls:
        certificate, key = (path.read_bytes() for path in arguments.tls)
        server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    else:
        server.add_insecure_port(address)
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
