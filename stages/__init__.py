from lightning_modules import portable, processes

portable.cap()  # before torch and numpy are imported
processes.name_user()  # before DVC and MLflow ask for it
