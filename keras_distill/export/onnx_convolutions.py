"""Convolutions that tf2onnx 1.17 converts wrongly or not at all."""

from typing import Any

from keras_distill.export.onnx_nodes import Nodes


def convolution_3d(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Write the groups of a convolution in three dimensions.

    tf2onnx finds groups only if the axes are named NHWC or NCHW.
    """
    from tf2onnx.onnx_opset.nn import ConvOp

    channels = graph.get_shape(node.input[0])[-1 if _is_channels_last(node) else 1]
    channels_of_a_group = graph.get_shape(node.input[1])[-2]
    ConvOp.any_version(graph.opset, graph, node)
    node.set_attr("group", channels // channels_of_a_group)


def transposed_convolution(
    graph: Any, node: Any, name: str, arguments: list[Any]
) -> None:
    """Write a transposed convolution of any output size.

    In TensorFlow, the output size is an input, and may be larger than the part that the
    kernel reaches. Beyond that part, the output is the bias only. tf2onnx would write
    negative `pads` for it, or zeros instead of the bias.
    """
    sizes, kernel, images, *bias = node.input
    nodes = Nodes(graph, node)
    kernel_shape = graph.get_shape(kernel)
    spatial = len(kernel_shape) - 2
    axes = slice(1, -1) if _is_channels_last(node) else slice(2, None)
    strides = _integers(node, "strides", spatial)[axes]
    dilations = _integers(node, "dilations", spatial)[axes]
    lengths = _lengths(graph, images, axes), _lengths(graph, node.output[0], axes)
    attributes: dict[str, Any] = {
        "kernel_shape": kernel_shape[:spatial],
        "strides": strides,
        "dilations": dilations,
        # The most values beyond the kernel's reach that TensorFlow allows.
        "output_padding": [stride - 1 for stride in strides],
    }
    is_open = any(-1 in side for side in lengths)
    if not is_open:
        widths = [
            dilation * (width - 1) + 1
            for dilation, width in zip(dilations, kernel_shape, strict=False)
        ]
        attributes |= _padding(*lengths, strides, widths)
    output = nodes.make(
        "ConvTranspose",
        _channels_first(nodes, node, images, spatial),
        nodes.make("Transpose", kernel, perm=[spatial + 1, spatial, *range(spatial)]),
        *bias,
        **attributes,
    )
    if is_open:
        output = _cut(nodes, output, sizes, axes, attributes["output_padding"])
    if _is_channels_last(node):
        perm = [0, *range(2, spatial + 2), 1]
        output = nodes.make("Transpose", output, perm=perm)
    nodes.finish(output)


def _padding(
    before: list[int], after: list[int], strides: list[int], widths: list[int]
) -> dict[str, list[int]]:
    """Return the padding attributes that give the output the size `after`."""
    start, end, beyond = [], [], []
    for length, out, stride, width in zip(before, after, strides, widths, strict=True):
        excess = stride * (length - 1) + width - out
        cut = max(excess, 0)
        start.append(cut // 2)  # As TensorFlow does for the `padding` "SAME".
        end.append(cut - cut // 2)
        beyond.append(max(-excess, 0))
    return {"pads": start + end, "output_padding": beyond}


def _cut(nodes: Nodes, output: str, sizes: str, axes: slice, beyond: list[int]) -> str:
    """Cut the output to its size at run time, if the sizes aren't known before."""
    spatial = len(beyond)
    whole = nodes.constant(range(spatial + 2)[axes])
    wanted = nodes.make("Gather", nodes.make("Cast", sizes, to=_INT64), whole)
    places = nodes.constant(range(2, spatial + 2))
    given = nodes.make("Gather", nodes.make("Shape", output), places)
    reach = nodes.make("Sub", given, nodes.constant(beyond))
    excess = nodes.make("Sub", reach, wanted)
    cut = nodes.make("Max", excess, nodes.constant([0] * spatial))
    start = nodes.make("Div", cut, nodes.constant([2] * spatial))
    end = nodes.make("Add", start, wanted)
    return nodes.make("Slice", output, start, end, places)


def _channels_first(nodes: Nodes, node: Any, images: str, spatial: int) -> str:
    if not _is_channels_last(node):
        return images
    perm = [0, spatial + 1, *range(1, spatial + 1)]
    return nodes.make("Transpose", images, perm=perm)


def _lengths(graph: Any, tensor: str, axes: slice) -> list[int]:
    """Return the spatial sizes of a tensor; -1 for open ones."""
    shape = graph.get_shape(tensor)
    return [-1] if shape is None else list(shape[axes])


def _is_channels_last(node: Any) -> bool:
    return not node.get_attr_str("data_format").startswith("NC")


def _integers(node: Any, name: str, spatial: int) -> list[int]:
    """Return an attribute for all axes; 1 for each axis if the node has none."""
    attribute = node.get_attr(name)
    return list(attribute.ints) if attribute else [1] * (spatial + 2)


_INT64 = 7  # onnx.TensorProto.INT64
