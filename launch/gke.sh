#!/usr/bin/env bash
# Submits a run to GKE as a JobSet with one pod per TPU host. If one pod fails or is evicted, all of them restart.
#   IMAGE=us-docker.pkg.dev/me/vitar TOPOLOGY=4x4 ACCELERATOR=tpu-v6e-slice CLAIM=runs bash launch/gke.sh \
#       python -m vitar_jax.train --config=configs/quickstart.py --workdir=/shared/mine
# IMAGE is a container image with the repository installed. CLAIM is a PersistentVolumeClaim that all pods can write
# (ReadWriteMany, for example Filestore); the pods mount it at /shared. Optional: CHIPS per host (default: 4), NAME (default:
# vitar) and RESTARTS after failures (default: 10). Evictions restart the run without limit. The cluster needs the JobSet controller and a node pool with this accelerator and
# topology. --dry-run before the command prints the manifest instead.
set -euo pipefail

dry_run=
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
if [ $# -eq 0 ] || [ -z "${IMAGE:-}" ] || [ -z "${TOPOLOGY:-}" ] || [ -z "${ACCELERATOR:-}" ] || [ -z "${CLAIM:-}" ]; then
  echo "usage: IMAGE=... TOPOLOGY=4x4 ACCELERATOR=tpu-v6e-slice CLAIM=... bash launch/gke.sh [--dry-run] COMMAND..." >&2
  exit 2
fi
chips=${CHIPS:-4}
# A run that an eviction stops ends with this status. With status 0, the pod would count as completed and not be restarted.
stopped=75
hosts=$((${TOPOLOGY//x/*} / chips))
# JSON, a subset of YAML: one quoted string per argument.
command=
for word in "$@"; do
  word=${word//\\/\\\\}
  command+="${command:+, }\"${word//\"/\\\"}\""
done

manifest="$(
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${NAME:-vitar}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-10}
    rules:
      - name: evicted
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  operator: In
                  values: [$stopped]
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
              containers:
                - name: vitar
                  image: $IMAGE
                  command: [$command]
                  env:
                    - name: VITAR_STOPPED_STATUS
                      value: "$stopped"
                  ports:
                    - containerPort: 8471
                    - containerPort: 8476
                  resources:
                    limits:
                      google.com/tpu: $chips
                  volumeMounts:
                    - name: shared
                      mountPath: /shared
              volumes:
                - name: shared
                  persistentVolumeClaim:
                    claimName: $CLAIM
EOF
)"
if [ -n "$dry_run" ]; then
  printf '%s\n' "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
