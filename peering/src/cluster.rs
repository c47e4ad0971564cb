//! Who this cluster is: its identity, its name and its certificate authority.

use crate::args::Args;
use anyhow::{Context as _, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use liquid_crds::vocabulary::{MANAGED_BY, MANAGED_BY_LIQUID};
use liquid_crds::{ClusterId, ClusterName};
use liquid_link::ca::ClusterCa;
use liquid_link::liveness::Liveness;
use std::collections::BTreeMap;
use std::time::Duration;
use time::OffsetDateTime;
use tracing::info;

/// Secret with the authority's certificate and key.
const CA_SECRET: &str = "liquid-ca";

/// This cluster.
pub(crate) struct Cluster {
    /// UID of the namespace kube-system.
    pub(crate) id: ClusterId,
    /// Name for people.
    pub(crate) name: ClusterName,
    /// Namespace Liquid runs in.
    pub(crate) namespace: String,
    /// Our authority.
    pub(crate) ca: ClusterCa,
    /// How soon a link that is broken is noticed.
    pub(crate) liveness: Liveness,
}

impl Cluster {
    /// Reads the identity of this cluster, and its authority, which is made on the first start.
    pub(crate) async fn load(client: &Client, args: &Args) -> Result<Self> {
        let (name, namespace) = (args.cluster_name.clone(), args.namespace.clone());
        let system = Api::<Namespace>::all(client.clone())
            .get("kube-system")
            .await
            .context("cannot read the namespace kube-system, whose UID is the identity of this cluster")?;
        let id: ClusterId = system.metadata.uid.unwrap_or_default().try_into()?;
        let ca = load_ca(client, &namespace, &id).await.context("cannot load the certificate authority")?;
        info!(cluster = %name, id = %id, ca = %ca.fingerprint(), "this cluster");
        let liveness = Liveness::within(Duration::from_secs(args.link_timeout));
        Ok(Self { id, name, namespace, ca, liveness })
    }

    /// What peers are told of this cluster.
    pub(crate) fn info(&self) -> liquid_link::proto::ClusterInfo {
        liquid_link::proto::ClusterInfo {
            cluster_id: self.id.to_string(),
            name: self.name.to_string(),
            version: liquid_runtime::VERSION.to_owned(),
        }
    }
}

async fn load_ca(client: &Client, namespace: &str, id: &ClusterId) -> Result<ClusterCa> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(stored) = secrets.get_opt(CA_SECRET).await? {
        return read_ca(&stored);
    }
    let ca = ClusterCa::generate(id, OffsetDateTime::now_utc())?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(CA_SECRET.to_owned()),
            labels: Some(BTreeMap::from([(MANAGED_BY.to_owned(), MANAGED_BY_LIQUID.to_owned())])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            ("tls.crt".to_owned(), ByteString(ca.certificate_pem().as_bytes().to_vec())),
            ("tls.key".to_owned(), ByteString(ca.key_pem().as_bytes().to_vec())),
        ])),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            info!("made a certificate authority for this cluster");
            Ok(ca)
        }
        // Another replica was faster: its authority is the one.
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            read_ca(&secrets.get(CA_SECRET).await?)
        }
        Err(error) => Err(error.into()),
    }
}

fn read_ca(secret: &Secret) -> Result<ClusterCa> {
    let field = |key: &str| {
        let value = secret.data.as_ref().and_then(|data| data.get(key));
        value.and_then(|value| String::from_utf8(value.0.clone()).ok())
    };
    let (Some(certificate), Some(key)) = (field("tls.crt"), field("tls.key")) else {
        bail!(
            "Secret {CA_SECRET} lacks tls.crt or tls.key; delete it to make a new authority (all peers must join again)"
        );
    };
    Ok(ClusterCa::load(&certificate, &key)?)
}
