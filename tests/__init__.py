from lightning_modules import portable

portable.cap()  # before torch and numpy are imported

from tests.checking import check_annotations  # noqa: E402

check_annotations("lightning_modules")
