//! Joining, and being refused.

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use liquid_crds::Peer;
use liquid_link::ca::certificate_request;
use liquid_link::client::Dialer;
use liquid_link::proto::enrollment_client::EnrollmentClient;
use liquid_link::proto::{ClusterInfo, JoinRequest};
use liquid_link::tls::client_config;
use liquid_link::token::JoinToken;
use liquid_scenarios::{Cluster, Environment, Snapshot};
use tonic::Code;

/// Would catch: a provider that lets in who has no right to it, a refusal without a reason, and refusals that leave
/// something behind.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn bad_tokens_are_refused_with_a_reason_and_nothing_is_made() -> anyhow::Result<()> {
    let environment = Environment::open().await?.unpeered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let good = provider.liquidctl.run(["invite"]).await?.ok()?;
    let used = provider.liquidctl.run(["invite", "--access", "deny"]).await?.ok()?;
    home.liquidctl.run(["peer", "out-of-band", "--token", used.trim()]).await?.ok()?;
    let has_access = async |cluster: &Cluster, peer: &str| {
        Ok::<_, kube::Error>(Api::<Peer>::all(cluster.client.clone()).get(peer).await?.spec.has_access())
    };
    assert!(has_access(provider, "home").await?, "the one who invites lets nothing in");
    assert!(!has_access(home, "provider").await?);
    home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
    let expired = provider.liquidctl.run(["invite", "--ttl", "1s"]).await?.ok()?;
    let revoked = provider.liquidctl.run(["invite", "-o", "json"]).await?.ok()?;
    let revoked: serde_json::Value = serde_json::from_str(&revoked)?;
    let secrets: Api<Secret> = Api::namespaced(provider.client.clone(), "liquid-system");
    let name = format!("liquid-token-{}", revoked["id"].as_str().unwrap());
    secrets.delete(&name, &DeleteParams::default()).await?;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let before = [Snapshot::take(&home.client).await?, Snapshot::take(&provider.client).await?];

    let cut = &good.trim()[..good.trim().len() - 9];
    for (token, code, reason) in [
        ("not-a-token", 2, "no join token"),
        (cut, 2, "damaged"),
        (expired.trim(), 2, "expired"),
        (used.trim(), 1, "used already"),
        (revoked["token"].as_str().unwrap(), 1, "wrong or was revoked"),
    ] {
        let refused = home.liquidctl.run(["peer", "out-of-band", "--token", token]).await?;
        assert_eq!(refused.code, code, "{refused:?}");
        assert!(refused.err.contains(reason), "{reason:?} is not in {}", refused.err);
        // After what is said of the progress, if it takes a while.
        let errors = refused.err.lines().skip_while(|line| line.starts_with("joining provider: "));
        assert_eq!(errors.count(), 1, "one clear sentence: {}", refused.err);
    }

    let after = [Snapshot::take(&home.client).await?, Snapshot::take(&provider.client).await?];
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.differences(after), Vec::<String>::new());
    }
    Ok(())
}

/// Would catch: a cluster that peers with itself, and two clusters of one name that are taken for one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_cluster_cannot_peer_with_itself() -> anyhow::Result<()> {
    let environment = Environment::open().await?.installed().await?;
    let home = &environment.home;
    let token = home.liquidctl.run(["invite"]).await?.ok()?;
    let refused = home.liquidctl.run(["peer", "out-of-band", "--token", token.trim()]).await?;
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("cannot peer with itself"), "{}", refused.err);
    Ok(())
}

/// Would catch: a provider that is given a token for another cluster's identity, an unreachable provider that is waited
/// for for ever, and what such an attempt leaves behind once it is taken back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn an_unreachable_provider_is_named_within_the_time_limit() -> anyhow::Result<()> {
    let environment = Environment::open().await?.unpeered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let before = Snapshot::take(&home.client).await?;
    // Nothing listens there.
    let token = provider.liquidctl.run(["invite", "--advertise", "127.0.0.1:9"]).await?.ok()?;
    let tried =
        home.liquidctl.run(["peer", "out-of-band", "--timeout", "4s", "--token", token.trim()]).await?;
    assert_eq!(tried.code, 1);
    assert!(tried.err.contains("127.0.0.1:9"), "{}", tried.err);
    // It may be a matter of time, so the attempt goes on; the user ends it.
    assert_eq!(Api::<Peer>::all(home.client.clone()).list(&ListParams::default()).await?.items.len(), 1);
    home.liquidctl.run(["unpeer", "provider"]).await?.ok()?;
    before.is_restored(&home.client).await?;
    Ok(())
}

/// Would catch: a token that lets its holder continue in the place of a cluster that borrows already, and read and end
/// what runs for it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two clusters"]
async fn a_token_does_not_open_the_peering_of_another_cluster() -> anyhow::Result<()> {
    let environment = Environment::open().await?.peered().await?;
    let (home, provider) = (&environment.home, &environment.provider);
    let peers: Api<Peer> = Api::all(provider.client.clone());
    let victim = peers.get(&home.name).await?;
    provider.drop_tokens().await?;
    let before = Snapshot::take(&provider.client).await?;
    let text = provider.liquidctl.run(["invite"]).await?.ok()?;
    let token = JoinToken::parse(text.trim(), 0)?;
    let (_key, csr) = certificate_request()?;
    let (tls, name) = client_config(&token.cluster_id, &token.ca_sha256, None)?;
    let channel = Dialer::new(token.endpoints.clone(), tls, name).connect().await?;
    let join = |csr: Vec<u8>| JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret().to_vec().into(),
        csr: csr.into(),
        consumer: Some(ClusterInfo {
            cluster_id: victim.spec.cluster_id.clone(),
            name: "mallory".to_owned(),
            ..ClusterInfo::default()
        }),
        ..JoinRequest::default()
    };

    let refused = EnrollmentClient::new(channel.clone()).join(join(csr)).await;

    let refused = refused.err().context("a stranger was let in")?;
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("with another key"), "{refused}");
    let damaged = EnrollmentClient::new(channel).join(join(b"no request".to_vec())).await;
    assert_eq!(damaged.err().context("a damaged request was accepted")?.code(), Code::InvalidArgument);
    provider.drop_tokens().await?;
    before.is_restored(&provider.client).await?;
    assert_eq!(peers.get(&home.name).await?.metadata.uid, victim.metadata.uid);
    Ok(())
}
