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

    def get_page_buffer_meta(self, indices):
        """Name the pieces of pages in layouts whose pages lie in one piece a plane."""
        assert self.layout in {"page_first", "page_first_direct", "page_head"}
        planes = self.kv_buffer.array.reshape(-1, self.page_num, self._page_elements)
        pages = [int(index) // self.page_size for index in indices[:: self.page_size]]
        pieces = [plane[page] for page in pages for plane in planes]
        return [piece.ctypes.data for piece in pieces], [piece.nbytes for piece in pieces]

    @property
    def _page_elements(self):
        return self.kv_buffer.array[0].size // self.page_num


class MLATokenToKVPoolHost(MHATokenToKVPoolHost):
    """The same with one plane."""

    @property
    def _page_elements(self):
        return self.kv_buffer.array.size // self.page_num
