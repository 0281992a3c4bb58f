{{- define "bert-lora.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "bert-lora.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "bert-lora.labels" -}}
{{ include "bert-lora.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* The Secret's entry with the keys of a kind; empty: there are none. */ -}}
{{- define "bert-lora.keyEntry" -}}
{{- $keys := .root.Values.keys -}}
{{- if $keys.existingSecret -}}{{ index $keys.existingEntries .kind }}
{{- else if index $keys .kind -}}{{ .kind }}-keys
{{- end -}}
{{- end -}}

{{- define "bert-lora.claim" -}}
{{ .Values.store.existingClaim | default (include "bert-lora.fullname" .) }}
{{- end -}}
