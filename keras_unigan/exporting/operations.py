"""Which ops a graph needs, and whether the servers before this one know them.

A server loads a graph only if it has every op in it, and images of TensorFlow Serving lag
TensorFlow by about a year. So an export may use what `KNOWN` lists and nothing else.
"""

from pathlib import Path

KNOWN_SINCE = "2.19"
"""TensorFlow whose registry is to have each of `KNOWN`."""

_NAMES = """
    Abs Add AddV2 All Any ArgMax ArgMin Assert AssignVariableOp AvgPool AvgPool3D BatchMatMulV2
    BatchToSpaceND BiasAdd BroadcastArgs BroadcastTo Case Cast Ceil ClipByValue ConcatV2 Const
    Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cross DecodeCompressed DecodeRaw
    DepthToSpace DepthwiseConv2dNative DisableCopyOnRead Einsum Elu EnsureShape Equal Erf Exp
    ExpandDims Fill Floor FloorDiv FloorMod FusedBatchNormV3 GatherV2 Greater GreaterEqual
    Identity If IgnoreErrorsDataset IsFinite LeakyRelu Less LessEqual Log LogSoftmax LogicalAnd
    LogicalNot LogicalOr MapDataset MatMul MatrixDiagV3 Max MaxPool MaxPool3D Maximum Mean
    MergeV2Checkpoints Min Minimum MirrorPad Mul Neg NoOp NotEqual OneHot OnesLike Pack Pad
    PadV2 ParseExampleV2 PartitionedCall Placeholder Pow Prod Range ReadVariableOp RealDiv
    ReduceDataset Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor RestoreV2 Reverse
    ReverseV2 Rsqrt SaveV2 Select SelectV2 Selu SerializeTensor Shape ShardedFilename Sigmoid
    Size Slice Softmax Softplus SpaceToBatchND SpaceToDepth
    Split SplitV Sqrt Square SquaredDifference Squeeze StatefulPartitionedCall StatelessCase
    StatelessIf StatelessRandomGetKeyCounter StatelessRandomNormalV2 StatelessWhile
    StaticRegexFullMatch StopGradient StridedSlice
    StringJoin StringLength StringLower StringStrip Sub Substr Sum Svd Tanh
    TensorDataset TensorListFromTensor TensorListGetItem TensorListReserve TensorListSetItem
    TensorListStack TensorStridedSliceUpdate Tile TopKV2 Transpose Unpack UnsortedSegmentSum
    VarHandleOp VarIsInitializedOp Where While ZerosLike
"""
KNOWN = frozenset(_NAMES.split())


def of_saved_model(folder):
    """What a SavedModel asks of a server: `producer`, `min_consumer`, `ops`."""
    from tensorflow.core.protobuf import saved_model_pb2

    data = (Path(folder) / "saved_model.pb").read_bytes()
    graph = saved_model_pb2.SavedModel.FromString(data).meta_graphs[0].graph_def
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    functions = {f.signature.name for f in graph.library.function}
    return {
        "producer": graph.versions.producer,
        "min_consumer": graph.versions.min_consumer,
        "ops": sorted({node.op for node in nodes} - functions),
    }


def unknown(folder):
    """Ops of a SavedModel that are not in `KNOWN`, sorted."""
    return sorted(set(of_saved_model(folder)["ops"]) - KNOWN)
