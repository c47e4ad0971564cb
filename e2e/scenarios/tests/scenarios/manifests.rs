//! What users would write.

use liquid_scenarios::{Cluster, TEST_IMAGE};

/// A Deployment whose pods must run on virtual nodes: an ordinary one, with an ordinary node affinity.
pub(crate) fn deployment(name: &str, replicas: u32, script: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions:
                  - {{key: liquid.mesh/type, operator: In, values: [virtual-node]}}
      containers:
        - name: main
          image: {TEST_IMAGE}
          imagePullPolicy: IfNotPresent
          command: [sh, -c, {script:?}]
          resources: {{requests: {{cpu: 1m, memory: 4Mi}}}}
"#
    )
}

/// A pod that must run on a virtual node.
pub(crate) fn pod(name: &str, script: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  nodeSelector: {{liquid.mesh/type: virtual-node}}
  containers:
    - name: main
      image: {TEST_IMAGE}
      imagePullPolicy: IfNotPresent
      command: [sh, -c, {script:?}]
"#
    )
}

/// A pod that is bound to a node already, whatever that has left: a scheduler would not bind more.
pub(crate) fn bound(name: &str, script: &str, node: &str, cpu: &str) -> String {
    pod(name, script)
        .replace(
            "nodeSelector: {liquid.mesh/type: virtual-node}",
            &format!(
                "nodeName: {node}\n  tolerations: [{{key: liquid.mesh/virtual-node, operator: Exists}}]"
            ),
        )
        .replace(
            "      imagePullPolicy: IfNotPresent\n",
            &format!("      imagePullPolicy: IfNotPresent\n      resources: {{requests: {{cpu: {cpu}}}}}\n"),
        )
}

/// A script that runs until it is told to end, and then ends at once.
pub(crate) const FOREVER: &str = "trap exit TERM; while :; do sleep 1 & wait; done";

/// A fresh offloaded namespace; it is deleted, with what it was offloaded to, by [`drop_namespace`].
pub(crate) async fn offloaded(home: &Cluster, name: &str) -> anyhow::Result<()> {
    home.delete_namespace(name).await?;
    home.create_namespace(name).await?;
    home.liquidctl.run(["offload", "namespace", name]).await?.ok()?;
    Ok(())
}

/// Deletes a namespace, as a user would.
pub(crate) async fn drop_namespace(home: &Cluster, name: &str) -> anyhow::Result<()> {
    home.give_up_namespace(name).await
}
