"""What TensorRT and TensorRT for RTX share: the program that runs on the GPU, and NVIDIA's compiler, which needs none.

`build_engine.py` is copied into artifacts and works with the bindings of both; `compiler.py` runs it in a child process
here, `listing.py` reads what the compiler logs, and `compiled.py` makes evidence of it. Nothing is imported here.
"""
