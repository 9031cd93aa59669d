"""LoRA and LyCORIS files of Wan: read, written, checked, examined, merged."""
