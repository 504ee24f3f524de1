"""The ONNX graph that the ``onnxruntime`` and ``tensorrt`` targets share, its Q/DQ, and TensorRT's rules for those."""
