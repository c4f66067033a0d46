# shellcheck shell=bash
# What XLA is told, by platform: the one table. Sourced by everything in launch/, and before `plan`, so that what is
# planned is what will run. Flags that are already set come after these, so the last word is yours.

# --- TPU: gathers of the next layer's weights run beside this layer's products ------------------------------------------
tpu=(
  --xla_enable_async_all_gather=true                          # a gather has a start and an end, with work between them
  --xla_tpu_enable_async_collective_fusion=true               # collectives are fused with the products that hide them,
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true  # gathers of weights among them
  --xla_tpu_prefer_async_allgather_to_allreduce=true          # v5p: else each gather is a sum of zeros, twice the bytes
  --xla_tpu_enable_data_parallel_all_reduce_opt=true          # several slices: gradients cross the slow network while
  --xla_tpu_data_parallel_opt_different_sized_ops=true        # the backward pass goes on, large and small ones alike
)

# --- GPU ------------------------------------------------------------------------------------------------------------------
gpu=(
  --xla_gpu_enable_latency_hiding_scheduler=true              # collectives start early and end late
  --xla_gpu_enable_pipelined_all_gather=true                  # the next layer's weights travel during this layer
  --xla_gpu_enable_pipelined_reduce_scatter=true              # this layer's gradients during the next
  --xla_gpu_all_gather_combine_threshold_bytes=134217728      # a layer's weights are one message of NCCL, not nine
  --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
  --xla_gpu_enable_triton_gemm=false                          # products are cuBLAS's; Triton's fail at some shapes
)

export LIBTPU_INIT_ARGS="${tpu[*]} ${LIBTPU_INIT_ARGS:-}"
export XLA_FLAGS="${gpu[*]} ${XLA_FLAGS:-}"
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}  # of a GPU; the rest is NCCL's and cuDNN's
