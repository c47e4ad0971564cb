{{- define "liquid.labels" -}}
app.kubernetes.io/name: liquid
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "liquid.selector" -}}
app.kubernetes.io/name: liquid
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "liquid.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What every process is told. */}}
{{- define "liquid.environment" -}}
- name: LIQUID_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: LIQUID_POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: LIQUID_LOG
  value: {{ .Values.log | quote }}
{{- end }}

{{- define "liquid.probes" -}}
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 2
livenessProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 10
  failureThreshold: 6
{{- end }}

{{- define "liquid.netAdmin" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL], add: [NET_ADMIN]}
{{- end }}

{{/* Pod of one of the processes without a network of its own: everything but its containers' arguments and ports is the same. */}}
{{- define "liquid.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: liquid-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "liquid.labels" . | nindent 4 }}
spec:
  replicas: {{ .process.replicas }}
  selector:
    matchLabels:
      {{- include "liquid.selector" . | nindent 6 }}
  strategy:
    # The newcomer stands by until its predecessor gives its lease back, so both may change at once.
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 1
  template:
    metadata:
      labels:
        {{- include "liquid.labels" . | nindent 8 }}
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "9090"
        prometheus.io/path: /metrics
    spec:
      serviceAccountName: liquid-{{ .component }}
      terminationGracePeriodSeconds: 30
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: {{ .component }}
          image: {{ include "liquid.image" .root }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: [/usr/local/bin/liquid-{{ .component }}]
          env:
            {{- include "liquid.environment" .root | nindent 12 }}
            {{- .env | nindent 12 }}
          ports:
            - {name: admin, containerPort: 9090}
            {{- .ports | nindent 12 }}
          {{- include "liquid.probes" "admin" | nindent 10 }}
          resources: {{- toYaml .process.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
      {{- with .process.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .process.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .process.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}

{{/* Families of a Service for peers. Not every load balancer has addresses of both. */}}
{{- define "liquid.ipFamilyPolicy" -}}
{{- .ipFamilyPolicy | default (ternary "SingleStack" "PreferDualStack" (eq .type "LoadBalancer")) -}}
{{- end -}}
