"""stub"""


def write(home, sections): ...
