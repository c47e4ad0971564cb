//! The lab: real Kubernetes clusters in network namespaces of one machine.
