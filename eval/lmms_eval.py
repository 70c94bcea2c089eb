"""How lmms-eval (0.7) finds this package: the entry point of group `lmms_eval.models`."""

MODEL = "videoauto_jax"


def manifest():
    """The `ModelManifest` that lmms-eval registers; it imports the class when the model is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path="videoauto_jax.eval.lmms_model.VideoAutoJax")
