"""Registration with transformers' Auto classes, at the price of an import only when an Auto class is used.

`transformers` itself is lazy: `AutoModel` lives in a module that takes seconds to import and that many programs never
touch. To register with it is to import it. So when that module is not there yet, the registration waits for it: an
import hook runs it right after the module, before anybody can see an `AutoModel` that does not know our classes. It
registers the kind of that module only (configurations, models or processors), so it imports no second Auto module. The
same holds for our pipelines and transformers' module of pipelines.

transformers' Auto modules are not safe to be imported by several threads at once (with or without us it can end in an
ImportError): touch the Auto classes once before you start threads. Where threads run already when `gaze_vlm` is
imported, everything is registered at once.
"""

import importlib
import importlib.abc
import sys
import threading
from collections.abc import Callable


def _register_configs() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .models.configuration_gaze_classifier import GazeClassifierConfig
    from .models.configuration_gaze_vlm import GazeVLMConfig
    from .models.configuration_scanpath_predictor import ScanpathPredictorConfig

    for config in (GazeClassifierConfig, GazeVLMConfig, ScanpathPredictorConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    from .models.modeling_gaze_classifier import GazeClassifier
    from .models.modeling_gaze_vlm import GazeVLM
    from .models.modeling_scanpath_predictor import ScanpathPredictor

    for model in (GazeClassifier, GazeVLM, ScanpathPredictor):
        AutoModel.register(model.config_class, model, exist_ok=True)
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
        auto_class.register(GazeVLM.config_class, GazeVLM, exist_ok=True)


def _register_processors() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    from .models.configuration_gaze_classifier import GazeClassifierConfig
    from .models.configuration_gaze_vlm import GazeVLMConfig
    from .models.configuration_scanpath_predictor import ScanpathPredictorConfig
    from .models.processing_gaze_classifier import GazeClassifierProcessor
    from .models.processing_gaze_vlm import GazeVLMProcessor
    from .models.processing_scanpath_predictor import ScanpathPredictorProcessor

    for config, processor in (
        (GazeClassifierConfig, GazeClassifierProcessor),
        (GazeVLMConfig, GazeVLMProcessor),
        (ScanpathPredictorConfig, ScanpathPredictorProcessor),
    ):
        AutoProcessor.register(config, processor, exist_ok=True)


def _register_pipelines() -> None:
    from transformers import AutoModel, AutoModelForImageTextToText
    from transformers.pipelines import PIPELINE_REGISTRY

    from .task_pipelines import GazeReportPipeline, ScanpathPredictionPipeline

    for task, pipeline, auto_class in (
        ("scanpath-prediction", ScanpathPredictionPipeline, AutoModel),
        ("gaze-report", GazeReportPipeline, AutoModelForImageTextToText),
    ):
        if PIPELINE_REGISTRY.supported_tasks.get(task, {}).get("impl") is not pipeline:  # it warns of a second time
            PIPELINE_REGISTRY.register_pipeline(task, pipeline, auto_class, type="multimodal")


_AUTO = "transformers.models.auto."
_OWN = f"{__package__}.models."
# kind of file -> transformers' module of that kind, and what to run once it is there
_REGISTRATIONS: dict[str, tuple[str, Callable[[], None]]] = {
    "configuration": (f"{_AUTO}configuration_auto", _register_configs),
    "modeling": (f"{_AUTO}modeling_auto", _register_models),
    "processing": (f"{_AUTO}processing_auto", _register_processors),
    "pipelines": ("transformers.pipelines", _register_pipelines),
}
_registered: set[str] = set()
_registering: set[str] = set()
_loading: set[str] = set()


def _kind(module: str) -> str | None:
    """Kind of a module of transformers that we register with, or of a file of ours; None for everything else."""
    for kind, (theirs, _) in _REGISTRATIONS.items():
        if module == theirs or module.startswith(f"{_OWN}{kind}_"):
            return kind
    return "pipelines" if module == f"{__package__}.task_pipelines" else None


def _register(kind: str) -> None:
    """Register a kind once, unless its Auto module is not there or a file of ours of that kind is half imported.

    To register is to import our files, and the import of each ends here again: those inside leave at once. No lock:
    to wait for one while an import's own lock is held can be for ever, and to register twice does no harm.
    """
    waits = any(_kind(module) == kind for module in _loading.copy())
    theirs, registration = _REGISTRATIONS[kind]
    if theirs not in sys.modules or kind in _registered | _registering or waits:
        return
    _registering.add(kind)
    try:
        registration()
        _registered.add(kind)
    finally:
        _registering.discard(kind)


class _Loader(importlib.abc.Loader):
    """The module's own loader, and our registration after it."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        name = module.__name__
        kind = _kind(name)
        if name == _REGISTRATIONS[kind][0]:
            _registered.discard(kind)  # executed anew, it knows nobody
        _loading.add(name)
        try:
            self.loader.exec_module(module)
        finally:
            _loading.discard(name)
        _register(kind)

    def __getattr__(self, name: str):
        if name == "loader":
            raise AttributeError(name)  # a copy in the making has none yet
        return getattr(self.loader, name)  # get_source and the like, for whoever inspects the module


class _Finder(importlib.abc.MetaPathFinder):
    """Watches the Auto modules, transformers' pipelines and our files; every other import passes by."""

    def find_spec(self, name, path, target=None):
        if _kind(name) is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _Loader(spec.loader)
                return spec
        return None


def register() -> None:
    """Make our classes known to AutoConfig, AutoModel, the two AutoModelFor... of GazeVLM, AutoProcessor and
    `transformers.pipeline`."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for kind, (theirs, _) in _REGISTRATIONS.items():
        if threading.active_count() > 1 and theirs.startswith(_AUTO):
            importlib.import_module(theirs)
        _register(kind)
