# shellcheck shell=bash
# The flags of XLA by platform. All scripts in launch/ source this file; source it before `plan`, too, so that it compiles
# what will run. Flags that are already set in the environment come last and take precedence.

# --- TPU: the next layer's weights are gathered during this layer's products ------------------------------------------
tpu=(
  --xla_enable_async_all_gather=true                          # a gather has a start and an end; other work runs between
  --xla_tpu_enable_async_collective_fusion=true               # collectives are fused with the products that hide them,
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true  # gathers of weights among them
  --xla_tpu_prefer_async_allgather_to_allreduce=true          # v5p: otherwise each gather is an all-reduce, twice the bytes
  --xla_tpu_enable_data_parallel_all_reduce_opt=true          # several slices: gradients cross the slow network during
  --xla_tpu_data_parallel_opt_different_sized_ops=true        # the backward pass, small and large ones
)

# --- GPU ------------------------------------------------------------------------------------------------------------------
gpu=(
  --xla_gpu_enable_latency_hiding_scheduler=true              # collectives start early and end late
  --xla_gpu_enable_pipelined_all_gather=true                  # the next layer's weights are gathered during this layer
  --xla_gpu_enable_pipelined_reduce_scatter=true              # this layer's gradients are reduced during the next
  --xla_gpu_all_gather_combine_threshold_bytes=134217728      # one NCCL message per layer, not nine
  --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
  --xla_gpu_enable_triton_gemm=false                          # cuBLAS; Triton's products fail at some shapes
)

export LIBTPU_INIT_ARGS="${tpu[*]} ${LIBTPU_INIT_ARGS:-}"
export XLA_FLAGS="${gpu[*]} ${XLA_FLAGS:-}"
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}  # of a GPU; the rest is for NCCL and cuDNN
