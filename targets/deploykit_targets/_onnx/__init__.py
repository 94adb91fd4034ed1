"""ONNX, shared by ONNX Runtime, OpenVINO, TensorRT, MIGraphX and TVM: lowering, clean-up, checks, counting, runtime.

Nothing is imported here: the modules need torch, onnx or onnxruntime, and are imported inside functions only.
"""
