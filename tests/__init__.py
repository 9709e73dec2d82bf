from lightning_modules import portable

portable.cap()  # before torch and numpy are imported
