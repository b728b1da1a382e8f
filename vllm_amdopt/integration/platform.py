"""The hooks that vLLM calls on its platform, mixed into a subclass of the platform it would choose.

The subclass keeps `_enum`, so vLLM keeps treating the machine as what it is. Each hook is a few
lines: vLLM's own work through `super()`, ours through `faults.attempt`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.logger import init_logger

from vllm_amdopt.integration import active_plan, faults
from vllm_amdopt.integration.compat.attention_names import register_attention_backend
from vllm_amdopt.integration.plugin import environment

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.amdopt")

ATTENTION = "AMDOPT_ATTN"
ATTENTION_CLASS = "vllm_amdopt.integration.attention_backend.AmdOptAttentionBackend"
MLA = "AMDOPT_MLA"


class PluginArgument(argparse.Action):
    """`--plugin`: by the time vLLM parses it, `plugin.register_platform` has read it already.

    Only a value that did not stand on the command line, as one from `--config`, is new here, and
    it comes too late to choose a platform by.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from vllm_amdopt.policy.switches import SwitchError, switch_from_plugin_argument

        try:
            wanted = switch_from_plugin_argument(values or "")
        except SwitchError as error:
            parser.error(str(error))
        if wanted != environment().get("VLLM_AMDOPT", "1"):
            parser.error(
                f"--plugin {values} in a configuration file comes too late; put it on the command "
                f"line, or set VLLM_AMDOPT={wanted}"
            )
        setattr(namespace, self.dest, values)


class AmdOptPlatform:
    """Mixed in before one of vLLM's platform classes. `platform_name` is vLLM's name for it."""

    amdopt: ClassVar[bool] = True
    platform_name: ClassVar[str]
    mla_class: ClassVar[str] = "vllm_amdopt.integration.mla_backend.AmdOptMLABackend"

    @classmethod
    def register_backends(cls) -> None:
        """Make our backends' names known to vLLM: before any configuration that has one is read."""
        register_attention_backend(ATTENTION, ATTENTION_CLASS)
        register_attention_backend(MLA, cls.mla_class)

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        super().pre_register_and_update(parser)  # type: ignore[misc]
        if parser is not None and "--plugin" not in parser._option_string_actions:
            group = parser.add_argument_group("vllm-amdopt", "optimized AMD execution paths")
            group.add_argument(
                "--plugin",
                nargs="?",
                const="amdopt",
                action=PluginArgument,
                metavar="amdopt|off|FEATURE,...",
                help="Switch vllm-amdopt on, off, or to the named features only. The same as "
                "VLLM_AMDOPT=1, 0 or a list.",
            )

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: VllmConfig) -> None:
        # Ours first: whether AITER is on decides what vLLM's ROCm platform does next.
        def prepare() -> None:
            from vllm_amdopt.integration.apply_plan import prepare

            prepare(vllm_config, cls.platform_name)

        faults.attempt("plan", prepare, lambda: None)
        super().apply_config_platform_defaults(vllm_config)  # type: ignore[misc]

    @classmethod
    def get_attn_backend_cls(
        cls, selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> str:
        cls._install_gemm()
        ours = cls._our_attention_backend(selected_backend, attn_selector_config, num_heads)
        if ours is not None:
            return ours
        if selected_backend is not None and selected_backend.name in (ATTENTION, MLA):
            selected_backend = None
        stock: str = super().get_attn_backend_cls(  # type: ignore[misc]
            selected_backend, attn_selector_config=attn_selector_config, num_heads=num_heads
        )
        return stock

    @classmethod
    def _our_attention_backend(
        cls, selected: Any, config: Any, num_heads: int | None
    ) -> str | None:
        """The path of our backend class where the plan has it on and it takes this layer."""
        feature, name = ("mla", MLA) if config.use_mla else ("attention", ATTENTION)
        if selected is not None and selected.name != name:
            return None
        if not active_plan.is_on(feature):
            return None

        def choose() -> str | None:
            from vllm.utils.import_utils import resolve_obj_by_qualname

            path = cls.mla_class if config.use_mla else ATTENTION_CLASS
            reasons = resolve_obj_by_qualname(path).validate_configuration(
                device_capability=cls.get_device_capability(),  # type: ignore[attr-defined]
                **config._asdict(),
            )
            if reasons:
                logger.info_once(
                    "vllm-amdopt: %s does not take a layer: %s.", name, "; ".join(reasons)
                )
                return None
            return path

        path = faults.attempt(f"{feature}_backend", choose, lambda: None)
        if path is None:
            return None

        def self_test() -> bool:
            from vllm_amdopt.integration.model_shapes import self_test_attention

            self_test_attention(config, num_heads)
            return True

        passed = faults.attempt(f"{feature}_self_test", self_test, lambda: False)
        if passed:
            logger.info_once("Using %s backend.", name)
        return path if passed else None

    @classmethod
    def _install_gemm(cls) -> None:
        """Put our GEMM in before the model's weights are loaded; called while it is being built."""
        if not active_plan.is_on("gemm"):
            return

        def install() -> None:
            from vllm_amdopt.integration.compat import unquantized_gemm

            unquantized_gemm.install(cls.platform_name)

        faults.attempt("gemm_dispatch", install, lambda: None)

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        super().update_block_size_for_backend(vllm_config)  # type: ignore[misc]

        def settle() -> None:
            from vllm_amdopt.integration.block_size import settle_block_size

            settle_block_size(vllm_config)

        faults.attempt("block_size", settle, lambda: None)
