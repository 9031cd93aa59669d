"""stub"""


def find_face(frame):
    return None
