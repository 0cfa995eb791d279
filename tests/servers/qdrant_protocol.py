"""What the gRPC protocol of Qdrant says, as its engine takes it, and back."""

import grpc
import numpy
import qdrant_edge as edge
from qdrant_client.grpc import json_with_int_pb2 as json_pb2
from qdrant_client.grpc import points_pb2 as points
from qdrant_client.grpc import qdrant_common_pb2 as common

MODES = [edge.UpdateMode.Upsert, edge.UpdateMode.InsertOnly, edge.UpdateMode.UpdateOnly]


class Refused(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def invalid(message):
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


# Values, ids and vectors.


def from_value(value):
    match value.WhichOneof("kind"):
        case "struct_value":
            return {name: from_value(field) for name, field in value.struct_value.fields.items()}
        case "list_value":
            return [from_value(item) for item in value.list_value.values]
        case "null_value" | None:
            return None
        case kind:
            return getattr(value, kind)


def to_value(value):
    match value:
        case None:
            return json_pb2.Value(null_value=0)
        case bool():
            return json_pb2.Value(bool_value=value)
        case int():
            return json_pb2.Value(integer_value=value)
        case float():
            return json_pb2.Value(double_value=value)
        case str():
            return json_pb2.Value(string_value=value)
        case list():
            return json_pb2.Value(list_value=json_pb2.ListValue(values=[to_value(item) for item in value]))
        case _:
            return json_pb2.Value(struct_value=json_pb2.Struct(fields=to_payload(value)))


def from_payload(payload):
    return {name: from_value(value) for name, value in payload.items()}


def to_payload(payload):
    return {name: to_value(value) for name, value in (payload or {}).items()}


def from_id(point):
    match point.WhichOneof("point_id_options"):
        case "num":
            return point.num
        case "uuid":
            return point.uuid
    raise invalid("Empty ID is not allowed")


def to_id(point):
    return common.PointId(num=point) if isinstance(point, int) else common.PointId(uuid=str(point))


def from_vector(vector):
    kind = vector.WhichOneof("vector")
    if kind not in (None, "dense"):
        raise invalid(f"this server takes no {kind} vectors")
    return list(vector.dense.data if kind else vector.data)


def from_vectors(vectors):
    match vectors.WhichOneof("vectors_options"):
        case "vector":
            return from_vector(vectors.vector)
        case "vectors":
            return {name: from_vector(vector) for name, vector in vectors.vectors.vectors.items()}
    raise invalid("Expected some vectors")


def to_vectors(vectors):
    dense = lambda data: points.VectorOutput(dense=points.DenseVector(data=data))
    if isinstance(vectors, dict):
        named = {name: dense(vector) for name, vector in vectors.items()}
        return points.VectorsOutput(vectors=points.NamedVectorsOutput(vectors=named))
    return points.VectorsOutput(vector=dense(vectors)) if vectors else None


# Filters.


def from_filter(given):
    if given is None:
        return None
    conditions = lambda listed: [from_condition(condition) for condition in listed] or None
    least = None
    if given.HasField("min_should"):
        least = edge.MinShould(conditions(given.min_should.conditions) or [], given.min_should.min_count)
    return edge.Filter(conditions(given.must), conditions(given.should), conditions(given.must_not), least)


def from_condition(condition):
    match condition.WhichOneof("condition_one_of"):
        case "field":
            return from_field(condition.field)
        case "has_id":
            return edge.HasIdCondition({from_id(point) for point in condition.has_id.has_id})
        case "filter":
            return from_filter(condition.filter)
        case "is_empty":
            return edge.IsEmptyCondition(condition.is_empty.key)
        case "is_null":
            return edge.IsNullCondition(condition.is_null.key)
        case "has_vector":
            return edge.HasVectorCondition(condition.has_vector.has_vector)
        case "nested":
            return edge.NestedCondition(condition.nested.key, from_filter(condition.nested.filter))
    raise invalid("Malformed Condition type")


def from_field(field):
    if field.HasField("match"):
        return edge.FieldCondition(field.key, match=from_match(field.match))
    if field.HasField("range"):
        bounds = {name: getattr(field.range, name) for name in ("lt", "gt", "gte", "lte") if field.range.HasField(name)}
        return edge.FieldCondition(field.key, range=edge.RangeFloat(**bounds))
    raise invalid("this server knows the field conditions match and range")


def from_match(match):
    match match.WhichOneof("match_value"):
        case "keyword" | "integer" as kind:
            return edge.MatchValue(getattr(match, kind))
        case "boolean":
            # To the engine's binding True is an integer; this one is not.
            return edge.MatchValue(numpy.bool_(match.boolean))
        case "keywords":
            return edge.MatchAny(list(match.keywords.strings))
        case "integers":
            return edge.MatchAny(list(match.integers.integers))
    raise invalid("this server matches keywords, integers and booleans")


def optional(message, field):
    return getattr(message, field) if message.HasField(field) else None


def with_payload(request):
    selector = request.with_payload
    match selector.WhichOneof("selector_options"):
        case "include":
            return edge.PayloadSelector.Include(list(selector.include.fields))
        case "exclude":
            return edge.PayloadSelector.Exclude(list(selector.exclude.fields))
    return selector.enable


def with_vectors(request):
    selector = request.with_vectors
    return list(selector.include.names) if selector.HasField("include") else selector.enable


# Updates, one function for a request of its own and for an operation in a batch: their fields have the same names.


def upsert(request):
    listed = [edge.Point(from_id(p.id), from_vectors(p.vectors), from_payload(p.payload)) for p in request.points]
    mode = optional(request, "update_mode")
    condition = from_filter(optional(request, "update_filter"))
    return edge.UpdateOperation.upsert_points(listed, condition, None if mode is None else MODES[mode])


def selected(operation, by_filter, selector, *arguments):
    match selector.WhichOneof("points_selector_one_of"):
        case "points":
            return operation([from_id(point) for point in selector.points.ids], *arguments)
        case "filter":
            return by_filter(from_filter(selector.filter), *arguments)
    raise invalid("PointsSelector is missing")


def delete(request):
    operations = edge.UpdateOperation
    return selected(operations.delete_points, operations.delete_points_by_filter, request.points)


def set_payload(request):
    operations = edge.UpdateOperation
    arguments = (from_payload(request.payload), optional(request, "key"))
    return selected(operations.set_payload, operations.set_payload_by_filter, request.points_selector, *arguments)


def overwrite_payload(request):
    operations = edge.UpdateOperation
    arguments = (from_payload(request.payload), optional(request, "key"))
    by_filter = operations.overwrite_payload_by_filter
    return selected(operations.overwrite_payload, by_filter, request.points_selector, *arguments)


def delete_payload(request):
    operations = edge.UpdateOperation
    keys = list(request.keys)
    return selected(operations.delete_payload, operations.delete_payload_by_filter, request.points_selector, keys)


def clear_payload(request):
    operations = edge.UpdateOperation
    return selected(operations.clear_payload, operations.clear_payload_by_filter, request.points)


def update_vectors(request):
    listed = [edge.PointVectors(from_id(point.id), from_vectors(point.vectors)) for point in request.points]
    return edge.UpdateOperation.update_vectors(listed, from_filter(optional(request, "update_filter")))


def delete_vectors(request):
    operations = edge.UpdateOperation
    names = list(request.vectors.names)
    return selected(operations.delete_vectors, operations.delete_vectors_by_filter, request.points_selector, names)


UPDATES = {
    "upsert": upsert,
    "delete_points": delete,
    "set_payload": set_payload,
    "overwrite_payload": overwrite_payload,
    "delete_payload": delete_payload,
    "clear_payload": clear_payload,
    "update_vectors": update_vectors,
    "delete_vectors": delete_vectors,
}


def retrieved(record):
    point = points.RetrievedPoint(id=to_id(record.id), payload=to_payload(record.payload))
    if vectors := to_vectors(record.vector):
        point.vectors.CopyFrom(vectors)
    return point


def scored(found):
    point = points.ScoredPoint(
        id=to_id(found.id), payload=to_payload(found.payload), score=found.score, version=found.version
    )
    if vectors := to_vectors(found.vector):
        point.vectors.CopyFrom(vectors)
    return point
