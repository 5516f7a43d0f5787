{{- define "kubealign.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: a CronJob's name has 52 and ours adds up to twelve. */}}
{{- define "kubealign.fullname" -}}
{{- $name := include "kubealign.name" . -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $both | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "kubealign.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kubealign.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kubealign.labels" -}}
{{ include "kubealign.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* Call with (list . "launcher") or (list . "jobs"). */}}
{{- define "kubealign.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 1 -}}
{{- $account := get $root.Values.serviceAccounts $kind -}}
{{- $own := printf "%s-%s" (include "kubealign.fullname" $root) $kind -}}
{{- $account.name | default (ternary $own "default" $account.create) -}}
{{- end -}}

{{- define "kubealign.tag" -}}
{{- .Values.images.tag | default .Chart.AppVersion -}}
{{- end -}}

{{/* Registry and folder of all images, with a slash behind them. */}}
{{- define "kubealign.imagePrefix" -}}
{{- with .Values.images.registry }}{{ . }}/{{ end }}{{ with .Values.images.repository }}{{ . }}/{{ end -}}
{{- end -}}

{{/* Call with (list . "reward-model" .Values.images.steps.reward_model): a digest counts more than a tag. */}}
{{- define "kubealign.image" -}}
{{- $root := index . 0 -}}
{{- $own := index . 2 -}}
{{- $images := $root.Values.images -}}
{{- $folder := ternary (printf "%s/" $images.repository) "" (ne $images.repository "") -}}
{{- $repository := $own.repository | default (printf "%s%s" $folder (index . 1)) -}}
{{- with $own.registry | default $images.registry }}{{ . }}/{{ end }}{{ $repository }}
{{- if $own.digest }}@{{ $own.digest }}{{ else }}:{{ $own.tag | default (include "kubealign.tag" $root) }}{{ end -}}
{{- end -}}

{{/* Names of the secrets through which pods reach the store, as a YAML list in a mapping. */}}
{{- define "kubealign.storeSecrets" -}}
names:
  {{- if include "kubealign.storeSettings" . }}
  - {{ include "kubealign.fullname" . }}-store
  {{- end }}
  {{- if eq .Values.store.credentials.kind "secret" }}
  - {{ .Values.store.credentials.secretName }}
  {{- end }}
{{- end -}}

{{- define "kubealign.storeSettings" -}}
{{- with .Values.store -}}
{{- if .endpoint }}
AWS_ENDPOINT_URL: {{ .endpoint | quote }}
{{- end }}
{{- if .region }}
AWS_REGION: {{ .region | quote }}
{{- end }}
{{- if eq .credentials.kind "secret" }}
AWS_EC2_METADATA_DISABLED: "true"
{{- end }}
{{- end -}}
{{- end -}}

{{- define "kubealign.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "kubealign.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end -}}

{{/* Which pods are a job's: launchers label them so (components/launch/cluster/job.py). */}}
{{- define "kubealign.jobPods" -}}
matchExpressions:
  - {key: kubealign.io/step, operator: Exists}
{{- end -}}

{{/*
What one step of one profile runs on: what the chart knows, then stages.defaults, stages.gpu where the outcome has GPUs,
stages.<step>, and last the profile's own; mappings are merged, as profiles are. Image, account and secrets are said
here though launchers are told them too: one that Kubeflow Pipelines starts is told nothing.
Call with (list . step resources-of-the-profile).
*/}}
{{- define "kubealign.resources" -}}
{{- $root := index . 0 -}}
{{- $step := index . 1 -}}
{{- $own := index . 2 -}}
{{- $values := $root.Values -}}
{{- $trainjob := eq $values.launcher.backend "trainjob" -}}
{{- $made := dict -}}
{{- $image := list $root ($step | replace "_" "-") (get $values.images.steps $step) -}}
{{- $_ := set $made "image" (include "kubealign.image" $image) -}}
{{- $_ := set $made "service_account" (include "kubealign.serviceAccount" (list $root "jobs")) -}}
{{- if $values.kueue.enabled -}}
{{- $_ := set $made "queue" $values.kueue.localQueue -}}
{{- end -}}
{{- /* A TrainJob cannot say these: its TrainingRuntime does. */ -}}
{{- if not $trainjob -}}
{{- if $values.priorityClass.enabled -}}
{{- $_ := set $made "priority_class" $values.priorityClass.name -}}
{{- end -}}
{{- if ne $values.images.pullPolicy "IfNotPresent" -}}
{{- $_ := set $made "image_pull_policy" $values.images.pullPolicy -}}
{{- end -}}
{{- end -}}
{{- $stage := get $values.stages $step -}}
{{- $gpus := 0 -}}
{{- range list $values.stages.defaults $stage $own -}}
{{- if hasKey . "gpus" -}}{{- $gpus = .gpus -}}{{- end -}}
{{- end -}}
{{- $pool := ternary $values.stages.gpu dict (gt (int $gpus) 0) -}}
{{- range list $values.stages.defaults $pool $stage $own -}}
{{- $_ := mergeOverwrite $made (deepCopy .) -}}
{{- end -}}
{{- if $trainjob -}}
{{- range list "env_from_config_maps" "env_from_secrets" "image_pull_policy" "priority_class" -}}
{{- if get $made . -}}
{{- $where := printf "stages.%s.%s (or stages.defaults, or a profile's %s.resources)" $step . $step -}}
{{- fail (printf "%s: a TrainJob cannot carry it; put it into a TrainingRuntime, or set launcher.backend to pytorchjob" $where) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $store := (include "kubealign.storeSecrets" $root | fromYaml).names | default list -}}
{{- with concat $store (get $made "env_from_secrets" | default list) | uniq -}}
{{- $_ := set $made "env_from_secrets" . -}}
{{- end -}}
{{- end -}}
{{- $made | toYaml -}}
{{- end -}}

{{/*
A pod of `helm test` with the launcher's image. Call with a dict: root, name (of the script, too), account (launcher or
jobs); suffix (of the pod's name, where not the script's), env, labels, ports, volumes and volumeMounts are optional.
*/}}
{{- define "kubealign.testPod" -}}
{{- $root := .root -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "kubealign.fullname" $root }}-test-{{ .suffix | default .name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "kubealign.labels" $root | nindent 4 }}
    app.kubernetes.io/component: test
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    helm.sh/hook: test
    # One that failed stays, to be looked at, until the next test.
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
    sidecar.istio.io/inject: "false"  # its proxy would outlive the test
spec:
  serviceAccountName: {{ include "kubealign.serviceAccount" (list $root .account) }}
  automountServiceAccountToken: {{ eq .account "launcher" }}
  restartPolicy: Never
  enableServiceLinks: false
  securityContext: {{- include "kubealign.podSecurity" $root | nindent 4 }}
  containers:
    - name: test
      image: {{ include "kubealign.image" (list $root "launcher" $root.Values.images.launcher) | quote }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      command: [python, -c, {{ $root.Files.Get (printf "files/tests/%s.py" .name) | toJson }}]
      envFrom:
        - configMapRef: {name: {{ include "kubealign.fullname" $root }}-launcher}
        {{- range (include "kubealign.storeSecrets" $root | fromYaml).names }}
        - secretRef: {name: {{ . }}}
        {{- end }}
      {{- with .env }}
      env:
        {{- range $name, $value := . }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
      {{- end }}
      {{- with .ports }}
      ports: {{- toYaml . | nindent 8 }}
      {{- end }}
      terminationMessagePolicy: FallbackToLogsOnError
      resources: {{- toYaml $root.Values.tests.resources | nindent 8 }}
      securityContext: {{- include "kubealign.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- with .volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- with .volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
