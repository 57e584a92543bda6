"""Texts of the files that `deploy` writes; `@WORD@` stands for a value.

The model server is the stock image with its own flags and files; before it stands nginx, which has
what that image lacks: REST over TLS, bearer tokens, and a refusal of reloads from outside.
"""

MODELS = """\
model_config_list {
  config {
    name: "@NAME@"
    base_path: "/models/@NAME@"
    model_platform: "tensorflow"
    model_version_policy { latest { num_versions: 1 } }
  }
}
# A canary beside the version in use; clients choose by label:
#   model_version_policy { specific { versions: 42 versions: 43 } }
#   version_labels { key: "stable" value: 42 }
#   version_labels { key: "canary" value: 43 }
"""

BATCHING = """\
# Only with --enable_batching. Requests share a batch where all shapes are equal. The stock server
# fails a whole batch of mixed shapes: turn it on there only if all clients send one size.
# Never add pad_variable_length_inputs: it gives back masks of the wrong size.
max_batch_size { value: 4 }
batch_timeout_micros { value: 5000 }
max_enqueued_batches { value: 16 }
num_batch_threads { value: 2 }
"""

MONITORING = """\
prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }
"""

NGINX = """\
# TLS and bearer tokens before the model server: REST on 8443, gRPC on 9443.
worker_processes auto;
pid /tmp/nginx.pid;
error_log /dev/stderr warn;

events {
  worker_connections 1024;
}

http {
  # Names, sizes and times; no query, no body.
  log_format plain '$time_iso8601 $request_method $uri $status $request_length $request_time';
  access_log /dev/stdout plain;
  server_tokens off;

  client_body_temp_path /tmp/client_body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;

  ssl_certificate /etc/nginx/tls/tls.crt;
  ssl_certificate_key /etc/nginx/tls/tls.key;
  ssl_protocols TLSv1.2 TLSv1.3;
  # Client certificates (mTLS): put the roots beside the others and uncomment.
  # ssl_client_certificate /etc/nginx/tls/ca.crt;
  # ssl_verify_client on;

  # tokens.map has one line a token:  "Bearer 0123…" 1;
  map_hash_bucket_size 256;
  map $http_authorization $known_token {
    default 0;
    include /etc/nginx/tokens/tokens.map;
  }

  client_max_body_size @MAX_MIB@m;

  server {
    listen 8443 ssl;

    location = /healthz {
      access_log off;
      return 200 "ok\\n";
    }

    location / {
      if ($known_token = 0) {
        return 401;
      }
      proxy_pass http://@UPSTREAM@:8501;
      proxy_http_version 1.1;
      proxy_read_timeout 300s;
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
    }
  }

  server {
    listen 9443 ssl;
    http2 on;

    # Who may ask may not change what is served.
    location = /tensorflow.serving.ModelService/HandleReloadConfigRequest {
      return 403;
    }

    location / {
      if ($known_token = 0) {
        return 401;
      }
      grpc_pass grpc://@UPSTREAM@:8500;
      grpc_read_timeout 600s;
      grpc_send_timeout 600s;
    }
  }
}
"""

# The image has neither curl nor wget; bash can open a socket itself.
COMPOSE = """\
services:
  server:
    image: @IMAGE@
    entrypoint: ["tensorflow_model_server"]
    command:
@FLAGS@
    ports:
      - "127.0.0.1:8500:8500"
      - "127.0.0.1:8501:8501"
    volumes:
      - type: bind
        source: @MODELS@
        target: /models/@NAME@
        read_only: true
      - ./models.config:/etc/unigan/models.config:ro
      - ./batching.config:/etc/unigan/batching.config:ro
      - ./monitoring.config:/etc/unigan/monitoring.config:ro
    user: "1000:1000"
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    mem_limit: @MEMORY@g
    stop_grace_period: 60s
    restart: unless-stopped
    healthcheck:
      test:
        - CMD
        - bash
        - -c
        - >-
          exec 3<>/dev/tcp/127.0.0.1/8501
          && printf 'GET /v1/models/@NAME@ HTTP/1.0\\r\\n\\r\\n' >&3
          && grep -q AVAILABLE <&3
      interval: 10s
      timeout: 5s
      start_period: 120s

  # For clients elsewhere: docker compose --profile tls up
  # It wants tls/tls.crt, tls/tls.key and tokens/tokens.map beside this file, readable for user 101.
  proxy:
    profiles: [tls]
    image: @PROXY_IMAGE@
    depends_on:
      server:
        condition: service_healthy
    ports:
      - "8443:8443"
      - "9443:9443"
    volumes:
      - ./nginx.conf:/etc/nginx/nginx.conf:ro
      - ./tls:/etc/nginx/tls:ro
      - ./tokens:/etc/nginx/tokens:ro
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    mem_limit: 1g
    restart: unless-stopped
"""

KUBERNETES = """\
# Before it:
#   kubectl create secret tls @NAME@-tls --cert=tls.crt --key=tls.key
#   kubectl create secret generic @NAME@-tokens --from-file=tokens.map
# and a volume claim "@CLAIM@" whose folder "@NAME@" holds the numbered versions.
apiVersion: v1
kind: ConfigMap
metadata:
  name: @NAME@-config
  labels: {app.kubernetes.io/name: @NAME@}
data:
  models.config: |
@MODELS_CONFIG@
  batching.config: |
@BATCHING_CONFIG@
  monitoring.config: |
@MONITORING_CONFIG@
  nginx.conf: |
@NGINX_CONF@
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: @NAME@
  labels: {app.kubernetes.io/name: @NAME@}
spec:
  replicas: @REPLICAS@
  selector:
    matchLabels: {app.kubernetes.io/name: @NAME@}
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  template:
    metadata:
      labels: {app.kubernetes.io/name: @NAME@}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 60
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
        runAsGroup: 1000
        fsGroup: 1000
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: server
          image: @IMAGE@
          command: ["tensorflow_model_server"]
          args:
@FLAGS@
          ports:
            - {name: grpc, containerPort: 8500}
            - {name: rest, containerPort: 8501}
          # Loading and warming up may take minutes; the other probes wait for this one.
          startupProbe:
            httpGet: {path: /v1/models/@NAME@, port: rest}
            periodSeconds: 5
            failureThreshold: 120
          readinessProbe:
            httpGet: {path: /v1/models/@NAME@, port: rest}
            periodSeconds: 5
            timeoutSeconds: 3
          livenessProbe:
            tcpSocket: {port: grpc}
            periodSeconds: 10
            timeoutSeconds: 3
          # Requests in flight finish while the service forgets this pod.
          lifecycle:
            preStop:
              exec: {command: ["sleep", "10"]}
          resources:
            requests: {cpu: "2", memory: @MEMORY@Gi}
            limits: {memory: @MEMORY@Gi}
          securityContext: &locked
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: models, mountPath: /models, readOnly: true}
            - {name: config, mountPath: /etc/unigan, readOnly: true}
            - {name: scratch, mountPath: /tmp}
        - name: proxy
          image: @PROXY_IMAGE@
          ports:
            - {name: https, containerPort: 8443}
            - {name: grpcs, containerPort: 9443}
          readinessProbe:
            httpGet: {path: /healthz, port: https, scheme: HTTPS}
            periodSeconds: 5
          livenessProbe:
            tcpSocket: {port: https}
            periodSeconds: 10
          lifecycle:
            preStop:
              exec: {command: ["sleep", "10"]}
          resources:
            requests: {cpu: 100m, memory: 256Mi}
            limits: {memory: 1Gi}
          securityContext: *locked
          volumeMounts:
            - {name: config, mountPath: /etc/nginx/nginx.conf, subPath: nginx.conf, readOnly: true}
            - {name: tls, mountPath: /etc/nginx/tls, readOnly: true}
            - {name: tokens, mountPath: /etc/nginx/tokens, readOnly: true}
            - {name: proxy-scratch, mountPath: /tmp}
      volumes:
        - name: models
          persistentVolumeClaim: {claimName: @CLAIM@, readOnly: true}
        - name: config
          configMap: {name: @NAME@-config}
        - name: tls
          secret: {secretName: @NAME@-tls, defaultMode: 0440}
        - name: tokens
          secret: {secretName: @NAME@-tokens, defaultMode: 0440}
        - name: scratch
          emptyDir: {}
        - name: proxy-scratch
          emptyDir: {}
---
apiVersion: v1
kind: Service
metadata:
  name: @NAME@
  labels: {app.kubernetes.io/name: @NAME@}
spec:
  selector: {app.kubernetes.io/name: @NAME@}
  ports:
    - {name: https, port: 8443, targetPort: https}
    - {name: grpcs, port: 9443, targetPort: grpcs}
---
# The model server itself knows neither TLS nor tokens: other pods reach the proxy only.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: @NAME@
spec:
  podSelector:
    matchLabels: {app.kubernetes.io/name: @NAME@}
  policyTypes: [Ingress]
  ingress:
    - ports:
        - {protocol: TCP, port: 8443}
        - {protocol: TCP, port: 9443}
"""

# The runtime's own arguments name the model and its folder; those here are added to them.
KSERVE = """\
# KServe takes the numbered versions from storageUri: here the volume claim "@CLAIM@", whose
# folder "@NAME@" holds them. TLS and tokens are those of its gateway.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: @NAME@
  annotations:
    # Plain pods: both ports at once, and no request waits for a pod to start.
    serving.kserve.io/deploymentMode: RawDeployment
spec:
  predictor:
    minReplicas: @REPLICAS@
    timeout: 300
    model:
      modelFormat: {name: tensorflow}
      runtimeVersion: "@RUNTIME_VERSION@"
      storageUri: pvc://@CLAIM@/@NAME@
      args:
@FLAGS@
      ports:
        - {name: http1, containerPort: 8080, protocol: TCP}
        - {name: h2c, containerPort: 9000, protocol: TCP}
      resources:
        requests: {cpu: "2", memory: @MEMORY@Gi}
        limits: {memory: @MEMORY@Gi}
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
"""
