"""A codec: points are stored as two numbers and read without pickle."""

import struct

from flowkit.datastore.codecs import register_codec
from flowkit.datastore.encoding import Encoded


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y


class PointCodec:
    name = "point"

    def encode(self, value):
        content = struct.pack("<dd", value.x, value.y)
        return Encoded([content], len(content), {}, self.name)

    def decode(self, view, meta):
        return Point(*struct.unpack("<dd", view))


register_codec(PointCodec(), Point)
