#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet: one job per slice, one pod per host. Needs kubectl, and JobSet in
# the cluster.
#
#   launch/gke.sh --name=janus --image=REGISTRY/janus_jax --accelerator=tpu-v5p-slice --topology=4x4x4 --hosts=16 \
#     --bucket=my-bucket -- --config=configs/pro_7b.py --workdir=/bucket/runs/pro_7b
#
#   --name=NAME           name of the JobSet (default: janus)
#   --image=IMAGE         container image with this folder in /janus_jax and its requirements installed
#   --accelerator=NAME    tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, tpu7x
#   --topology=SHAPE      chips of one slice, such as 4x4x4
#   --hosts=N             hosts per slice
#   --chips=N             chips per host (default: 4)
#   --slices=N            number of slices (default: 1); mesh.data must be a multiple
#   --bucket=NAME         bucket that every pod mounts as /bucket, through Cloud Storage FUSE
#   --service_account=S   Kubernetes service account with access to the bucket (default: default)
#   --spot                uses spot nodes
#   --retries=N           restarts of the whole job (default: 20)
#   --dry-run             prints the manifest only
#
# Everything after -- goes to `python -m janus_jax.train`. Environment variables set the same: NAME, IMAGE, ...
# An evicted pod saves the state within its grace period (five minutes; a spot node may give less than one); the JobSet
# restarts and the run resumes. A JobSet of the same name is replaced.

set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

NAME=${NAME:-janus} IMAGE=${IMAGE:-} ACCELERATOR=${ACCELERATOR:-} TOPOLOGY=${TOPOLOGY:-} HOSTS=${HOSTS:-} CHIPS=${CHIPS:-4}
SLICES=${SLICES:-1} BUCKET=${BUCKET:-} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default} SPOT=${SPOT:-} RETRIES=${RETRIES:-20}
parse "name image accelerator topology hosts chips slices bucket service_account spot? retries" "$@"
[[ $IMAGE && $ACCELERATOR && $TOPOLOGY && $HOSTS ]] || complain "--image, --accelerator, --topology and --hosts are needed"
number hosts 1 "$HOSTS"
number chips 1 "$CHIPS"
number slices 1 "$SLICES"
number retries 0 "$RETRIES"
((${#arguments[@]})) || complain "the flags of the training follow after --, for example -- --config=configs/pro_7b.py --workdir=/bucket/runs/pro_7b"

# if_set VALUE LINES: prints lines of the manifest if a setting has a value.
if_set() { [[ -z $1 ]] || printf '%s\n' "$2"; }

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $RETRIES
    rules:
    - action: FailJobSet # a user's mistake recurs every time
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $SLICES
    template:
      spec:
        parallelism: $HOSTS
        completions: $HOSTS
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [2]}
        template:
          metadata:
            annotations:
              gke-gcsfuse/volumes: "$([[ -z $BUCKET ]] && echo false || echo true)"
          spec:
            restartPolicy: Never
            serviceAccountName: $SERVICE_ACCOUNT
            terminationGracePeriodSeconds: 300
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
              cloud.google.com/gke-tpu-topology: $TOPOLOGY
YAML
  if_set "$SPOT" '              cloud.google.com/gke-spot: "true"'
  cat <<YAML
            containers:
            - name: train
              image: $IMAGE
              workingDir: /janus_jax
              command:
              - bash
              - -c
              - '. launch/xla_flags.sh; exec python -m janus_jax.train "\$@" --distributed=auto'
              - train
YAML
  printf "              - '%s'\n" "${arguments[@]//\'/\'\'}" # quoted for YAML
  cat <<YAML
              resources:
                limits:
                  google.com/tpu: $CHIPS
YAML
  if_set "$BUCKET" "              volumeMounts:
              - {name: bucket, mountPath: /bucket}
            volumes:
            - name: bucket
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes: {bucketName: $BUCKET, mountOptions: 'implicit-dirs,rename-dir-limit=200000'}"
}

if [[ -n ${DRY_RUN:-} ]]; then
  manifest
else
  run kubectl delete jobset "$NAME" --ignore-not-found --wait
  manifest | run kubectl apply -f -
  state=
  until [[ $state == Completed || $state == Failed ]]; do
    sleep 20
    state=$(kubectl get jobset "$NAME" --output=jsonpath='{.status.terminalState}')
  done
  echo "JobSet $NAME: $state" >&2
  [[ $state == Completed ]]
fi
