{{- define "millstream.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "millstream.operator" -}}
{{ include "millstream.fullname" . }}-operator
{{- end -}}

{{- define "millstream.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "millstream.operator" .) }}
{{- end -}}

{{- define "millstream.selector" -}}
app.kubernetes.io/name: millstream
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "millstream.labels" -}}
{{ include "millstream.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- /* repository:tag of one of the images */ -}}
{{- define "millstream.image" -}}
{{ .image.repository }}:{{ .image.tag | default .chart.AppVersion }}
{{- end -}}

{{- /*
Sources of the projected volume: the keys of the Secrets under the names that the operator reads.
Optional, so that the operator starts without them and says on each resource which one is missing.
*/ -}}
{{- define "millstream.credentials" -}}
{{- with .Values.kafka.sasl.credentialsSecret }}
- secret:
    name: {{ . }}
    optional: true
    items:
      - {key: username, path: kafka-username}
      - {key: password, path: kafka-password}
{{- end }}
{{- if and .Values.kafka.tls.enabled .Values.kafka.tls.caSecret }}
- secret:
    name: {{ .Values.kafka.tls.caSecret }}
    optional: true
    items:
      - {key: {{ .Values.kafka.tls.caKey }}, path: kafka-ca.crt}
{{- end }}
{{- with .Values.cassandra.credentialsSecret }}
- secret:
    name: {{ . }}
    optional: true
    items:
      - {key: username, path: cassandra-username}
      - {key: password, path: cassandra-password}
{{- end }}
{{- if and .Values.cassandra.tls.enabled .Values.cassandra.tls.caSecret }}
- secret:
    name: {{ .Values.cassandra.tls.caSecret }}
    optional: true
    items:
      - {key: {{ .Values.cassandra.tls.caKey }}, path: cassandra-ca.crt}
{{- end }}
{{- with .Values.schemaRegistry.credentialsSecret }}
- secret:
    name: {{ . }}
    optional: true
    items:
      - {key: username, path: registry-username}
      - {key: password, path: registry-password}
{{- end }}
{{- if and .Values.schemaRegistry.tls.enabled .Values.schemaRegistry.tls.caSecret }}
- secret:
    name: {{ .Values.schemaRegistry.tls.caSecret }}
    optional: true
    items:
      - {key: {{ .Values.schemaRegistry.tls.caKey }}, path: registry-ca.crt}
{{- end }}
{{- end -}}

{{- define "millstream.tls" -}}
{{- if .caSecret }}
tls: {caSecret: {name: {{ .caSecret }}, key: {{ .caKey }}}}
{{- else }}
tls: {}
{{- end }}
{{- end -}}

{{- /* The operator's configuration file. */ -}}
{{- define "millstream.config" -}}
{{- with .Values.kafka }}
{{- if .bootstrapServers }}
kafka:
  bootstrapServers: {{ .bootstrapServers | quote }}
  {{- if .sasl.credentialsSecret }}
  sasl:
    mechanism: {{ .sasl.mechanism }}
    credentialsSecret: {name: {{ .sasl.credentialsSecret }}}
  {{- end }}
  {{- if .tls.enabled }}
  {{- include "millstream.tls" .tls | trim | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .Values.cassandra }}
{{- if .contactPoints }}
cassandra:
  contactPoints: {{ toJson .contactPoints }}
  {{- with .datacenter }}
  datacenter: {{ . | quote }}
  {{- end }}
  {{- with .credentialsSecret }}
  credentialsSecret: {name: {{ . }}}
  {{- end }}
  {{- if .tls.enabled }}
  {{- include "millstream.tls" .tls | trim | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .Values.schemaRegistry }}
{{- if .url }}
schemaRegistry:
  url: {{ .url | quote }}
  {{- with .credentialsSecret }}
  credentialsSecret: {name: {{ . }}}
  {{- end }}
  {{- if .tls.enabled }}
  {{- include "millstream.tls" .tls | trim | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .Values.keyspaceReplication }}
keyspaceReplication: {{ toJson . }}
{{- end }}
worker:
  image: {{ include "millstream.image" (dict "image" .Values.image.worker "chart" .Chart) | quote }}
  imagePullPolicy: {{ .Values.image.worker.pullPolicy }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets: {{ toJson . }}
  {{- end }}
  {{- with .Values.worker.resources }}
  resources: {{ toJson . }}
  {{- end }}
  {{- with .Values.worker.nodeSelector }}
  nodeSelector: {{ toJson . }}
  {{- end }}
  {{- with .Values.worker.tolerations }}
  tolerations: {{ toJson . }}
  {{- end }}
{{- end -}}
