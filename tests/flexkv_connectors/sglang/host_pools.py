"""What is read of SGLang's host pools, over numpy."""


class Tensor:
    """An array with the questions of a torch tensor that are asked."""

    def __init__(self, array):
        self.array, self.dtype, self.shape, self.nbytes = (
            array,
            array.dtype,
            array.shape,
            array.nbytes,
        )

    def stride(self):
        return tuple(stride // self.array.itemsize for stride in self.array.strides)

    def data_ptr(self):
        return self.array.ctypes.data


class MHATokenToKVPoolHost:
    """What is read of SGLang's pool of that name."""

    storage_format_tag, stores_page_envelope = None, False
    start_layer = 0

    def __init__(self, layout, array, page_num, page_size):
        self.layout, self.kv_buffer, self.dtype = layout, Tensor(array), array.dtype
        self.page_num, self.page_size = page_num, page_size


class MLATokenToKVPoolHost(MHATokenToKVPoolHost):
    """The same with one plane."""
