{{- define "lithe.name" -}}
{{- printf "%s-%s" (.root.Release.Name | trunc 40 | trimSuffix "-") .component -}}
{{- end -}}

{{- define "lithe.selector" -}}
app.kubernetes.io/name: lithe
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "lithe.labels" -}}
{{- $own := include "lithe.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "lithe" -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version) -}}
{{- /* Our own come last: a selector that a user's label could change selects nothing. */ -}}
{{- mergeOverwrite (deepCopy .root.Values.extraLabels) $own | toYaml -}}
{{- end -}}

{{- define "lithe.metadata" -}}
name: {{ include "lithe.name" . }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "lithe.labels" . | nindent 2 }}
{{- end -}}

{{- define "lithe.image" -}}
{{- $tag := .image.tag | default .root.Chart.AppVersion -}}
{{- .image.repository }}:{{ $tag }}{{ with .image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "lithe.store" -}}
{{- if .Values.registry.enabled -}}
  {{- if .Values.store.uri -}}
    {{- fail (printf "store.uri is %s but registry.enabled is true, and only one store can be used: set registry.enabled=false, or leave store.uri empty to use the embedded registry" .Values.store.uri) -}}
  {{- end -}}
oci://{{ include "lithe.name" (dict "root" . "component" "registry") }}.{{ .Release.Namespace }}.svc:5000/lithe
{{- else -}}
  {{- required "registry.enabled is false, so artifacts need another store: set store.uri to oci://host/prefix, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix" .Values.store.uri -}}
{{- end -}}
{{- end -}}

{{- /* The profile `restricted`, and a user above 10000 that is nobody's on any node. */ -}}
{{- define "lithe.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "lithe.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "lithe.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* What the operator may do where it watches. No Secrets, no wildcards, no nodes. */ -}}
{{- define "lithe.rules" -}}
- apiGroups: [lithe.dev]
  resources: [modeldeployments]
  verbs: [get, list, watch]
- apiGroups: [lithe.dev]
  resources: [modeldeployments/status]
  verbs: [get, patch]
# To block an owner's deletion where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [lithe.dev]
  resources: [modeldeployments/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Where the Services of models lead while their requests go through the gateway.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch, create, patch, delete]
# Why a pod waits or failed; one that is much slower than the others is replaced.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [get, list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- /* What the gateway may do where models are: look. */ -}}
{{- define "lithe.gatewayRules" -}}
- apiGroups: [lithe.dev]
  resources: [modeldeployments]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
{{- end -}}

{{- /* The namespaces with models, as a label selector. */ -}}
{{- define "lithe.namespaces" -}}
{{- if .Values.watchNamespaces -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: In
    values:
      {{- toYaml .Values.watchNamespaces | nindent 6 }}
{{- else -}}
matchLabels: {}
{{- end -}}
{{- end -}}

{{- define "lithe.mayRead" -}}
authorizer.group('').resource('secrets').namespace(object.metadata.namespace).name({{ . }}.credentialsSecret).check('get').allowed()
{{- end -}}
