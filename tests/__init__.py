from lightning_modules import portable

portable.cap()  # before torch and numpy are imported

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("lightning_modules", "beartype.beartype")
