"""Run `dynamo.vllm` without torchvision, of which there is no CPU build on the public index.

Dynamo imports one function of an image processor that imports torchvision. Chats have no images.
"""

import runpy
import sys
from types import ModuleType

IMAGE_PROCESSOR = "transformers.models.qwen2_vl.image_processing_qwen2_vl"


def stand_in() -> ModuleType:
    """Return a module with the one name that Dynamo imports."""
    module = ModuleType(IMAGE_PROCESSOR)
    module.__dict__["smart_resize"] = None
    return module


if __name__ == "__main__":
    sys.modules[IMAGE_PROCESSOR] = stand_in()
    runpy.run_module("dynamo.vllm", run_name="__main__", alter_sys=True)
