"""What a layout of released weights states: name tables, and how its config is read and written.

A `ModelLayout` has whole models, a `TowerLayout` one pretrained part of a model.
"""

import abc
import contextlib
import functools
import json
import re
from typing import NamedTuple

from janus_jax.convert import name_map
from janus_jax.errors import UserError
from janus_jax.models.functional import ModelSpec


class Family(NamedTuple):
    """One family of models in a layout.

    Attributes:
      table: list of `name_map.Line`.
      configs: names of the shipped configs that have the sizes of its releases.
      not_released: pattern of the parameters that its releases leave out.
    """

    table: list
    configs: tuple
    not_released: str = ""


class ModelLayout(abc.ABC):
    """A layout of whole models.

    Attributes:
      name: of the flag --layout.
      families: {generation kind: Family}.
      llm_field: the field of config.json that describes the LLM, by which the layout is recognised.
    """

    name: str
    families: dict
    llm_field: str

    def family(self, kind):
        """The family of a generation kind.

        Raises:
          UserError: when the layout has none.
        """
        if kind not in self.families:
            raise UserError(
                f"The {self.name} layout has no model with generation by {kind!r}; it has "
                f"{sorted(self.families)}."
            )
        return self.families[kind]

    def tensors(self, kind, abstract):
        """The tensors of a model's release.

        Args:
          kind: of generation.
          abstract: {parameter path: anything with a shape}.

        Returns:
          {tensor name: `name_map.Tensor`}.
        """
        table, _, not_released = self.family(kind)
        released = {p: leaf for p, leaf in abstract.items() if not re.fullmatch(not_released, p)}
        return name_map.expand(table, released, layout=self.name)

    def unused_groups(self, kind, abstract):
        """Tensors that releases contain and no model uses.

        Returns:
          list of {tensor name: shape}; a release has either all tensors of a group or none.
        """
        return []

    def unused(self, kind, abstract):
        """{tensor name: shape} of all groups of unused tensors."""
        groups = self.unused_groups(kind, abstract)
        return {name: shape for group in groups for name, shape in group.items()}

    def match(self, folder, kind, abstract):
        """Matches a folder's tensors with a model's parameters.

        Args:
          folder: files.Folder.
          kind: of generation.
          abstract: {parameter path: shape}.

        Returns:
          {tensor name: `name_map.Tensor`}, and the names of the unused tensors in the folder.

        Raises:
          UserError: for missing, extra and wrong tensors.
        """
        tensors = self.tensors(kind, abstract)
        unused = self.unused(kind, abstract)
        where = repr(str(folder.path))
        name_map.check(tensors, folder.tensors, optional=unused, layout=self.name, source=where)
        for group in self.unused_groups(kind, abstract):
            missing = [name for name in group if name not in folder.tensors]
            if 0 < len(missing) < len(group):
                present = next(name for name in group if name in folder.tensors)
                raise UserError(
                    f"{where} has {present} but misses {missing[0]}, which belongs to it."
                )
        return tensors, [name for name in unused if name in folder.tensors]

    def read_config(self, folder):
        """Reads the JSON files of a release.

        Args:
          folder: files.Folder.

        Returns:
          the fields of `config.model` that it describes: {'llm': ..., 'understanding': {'encoder':
          ...}, 'generation': ...}.

        Raises:
          UserError: for a missing config.json, and for a model that this project does not have.
        """
        config = required_config(folder)
        if self.llm_field not in config:
            raise UserError(
                f"The config.json of {str(folder.path)!r} is not of the {self.name} layout: it has "
                f"no {self.llm_field}. Choose the --layout that the weights were released in."
            )
        with field_errors(f"The config.json of {str(folder.path)!r} cannot be understood"):
            model = self._read(config)
        preprocessor = folder.json("preprocessor_config.json")
        if preprocessor:
            _check_preprocessor(preprocessor, model["generation"]["image_size"])
        return model

    @abc.abstractmethod
    def _read(self, config):
        """The fields of `config.model` that a config.json describes."""

    def config_texts(self, config, tokenizer, *, dtype):
        """The JSON files of a release.

        Args:
          config: the resolved config of the model.
          tokenizer: TextTokenizer, or None.
          dtype: of the weights, 'bfloat16' or 'float32'.

        Returns:
          {file name: text}.

        Raises:
          UserError: for a model that the layout cannot describe.
        """
        for name, (value, expected) in self._fixed_fields(config["model"]).items():
            if value != expected:
                raise UserError(
                    f"config.model.{name} is {value}, but the {self.name} layout has {expected} "
                    "only; code that loads the export would compute something else."
                )
        files = self._write(config, tokenizer, dtype)
        texts = {
            name: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            for name, content in files.items()
        }
        if tokenizer is not None:
            texts["tokenizer.json"] = self._tokenizer_text(tokenizer)
        return texts

    def _fixed_fields(self, model):
        """{field of `config.model`: (value, the only value that the layout can describe)}."""
        generation = model["generation"]
        encoder = model["understanding"]["encoder"]
        return {"generation.image_size": (generation["image_size"], encoder["image_size"])}

    @abc.abstractmethod
    def _write(self, config, tokenizer, dtype):
        """{file name: content} of the JSON files."""

    def _tokenizer_text(self, tokenizer):
        """The content of tokenizer.json."""
        return tokenizer.text


class TowerLayout(abc.ABC):
    """A layout of one pretrained part, such as an image encoder.

    Attributes:
      name: of the flag --layout.
      target: where its parameters are in the whole model.
      module: its class.
      tables: name tables, of which the one that fits a folder best is used.
      ignored: pattern of tensors that files may contain and the tower does not use.
      constants: paths of parameters that are in config.json instead of the weight files.
    """

    name: str
    target: str
    module: type
    tables: list
    ignored: str = ""
    constants: tuple = ()

    def build(self, model):
        """Parameters of the tower with their paths in the whole model.

        Args:
          model: the part of `config.model` that describes it.

        Returns:
          {path: ShapeDtypeStruct} and {path: logical axes}.
        """
        settings = functools.reduce(dict.__getitem__, self.target.split("/"), model)
        network = ModelSpec(functools.partial(self.module, **settings))
        prefixed = lambda flat: {f"{self.target}/{path}": leaf for path, leaf in flat.items()}
        return prefixed(network.abstract), prefixed(network.axes)

    def match(self, folder, abstract):
        """As `ModelLayout.match`; `abstract` are parameters of the tower or of a whole model.

        Returns:
          {tensor name: `name_map.Tensor`}.
        """
        inside = {path: leaf for path, leaf in abstract.items() if self._is_stored(path)}
        candidates = [name_map.expand(table, inside, layout=self.name) for table in self.tables]
        tensors = max(candidates, key=lambda tensors: len(tensors.keys() & folder.tensors.keys()))
        ignored = {name: None for name in folder.tensors if re.fullmatch(self.ignored, name)}
        where = repr(str(folder.path))
        name_map.check(tensors, folder.tensors, optional=ignored, layout=self.name, source=where)
        return tensors

    def _is_stored(self, path):
        return path.startswith(f"{self.target}/") and path not in self.constants

    def read_config(self, folder):
        """The part of `config.model` that a folder describes, by its config.json or its tensors.

        Raises:
          UserError: when these do not tell, and for a tower that this project does not have.
        """
        with field_errors(f"{str(folder.path)!r} is not of the {self.name} layout"):
            return self._read(folder)

    @abc.abstractmethod
    def _read(self, folder):
        """As `read_config`; errors in reading fields are reported by the caller."""

    def read_constants(self, folder):
        """{path: number} of `constants`."""
        return {}

    def notes(self, folder):
        """Sentences about how this project uses the tower differently from its training."""
        return []


def required_config(folder):
    """The content of a folder's config.json, which must exist."""
    config = folder.json("config.json")
    if not config:
        raise UserError(
            f"{str(folder.path)!r} has no config.json, which is needed for sizes that tensors do "
            "not show, such as the number of attention heads."
        )
    return config


@contextlib.contextmanager
def field_errors(message):
    """Turns errors in reading fields, missing or of another type, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        IndexError,
        ZeroDivisionError,
    ) as error:
        raise UserError(f"{message} ({type(error).__name__}: {error}).") from None


def require(source, fields):
    """Checks fields for which this project supports one value only.

    Args:
      source: where they are from, for errors.
      fields: {name: (value, the only value)}.
    """
    for name, (value, expected) in fields.items():
        if value != expected:
            raise UserError(
                f"{name} is {value!r} in {source}; only {expected!r} is supported by this project."
            )


def _check_preprocessor(preprocessor, image_size):
    size = preprocessor.get("image_size", preprocessor.get("size", {}))
    if isinstance(size, dict):
        size = size.get("height")
    half = [0.5, 0.5, 0.5]
    require(
        "preprocessor_config.json",
        {
            "image_mean": (preprocessor.get("image_mean", half), half),
            "image_std": (preprocessor.get("image_std", half), half),
            "min_size": (preprocessor.get("min_size", 14), 14),
            "size": (size, image_size),
        },
    )
