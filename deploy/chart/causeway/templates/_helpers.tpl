{{- define "causeway.selector" -}}
app.kubernetes.io/name: causeway
{{- end -}}

{{- define "causeway.labels" -}}
{{ include "causeway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "causeway.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* "true" or nothing. Offline, Helm knows the version of a cluster that it is told, and not its kinds. */}}
{{- define "causeway.admission" -}}
{{- $new := semverCompare ">=1.31.0-0" .Capabilities.KubeVersion.Version -}}
{{- $enabled := toString .Values.admissionPolicy.enabled -}}
{{- if or (eq $enabled "true") (and (eq $enabled "auto") $new) -}}
true
{{- end -}}
{{- end -}}
