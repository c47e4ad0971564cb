//! Problems as Events on the Node or the gateway's Pod, and connections that were not let in as Events on the Peer: where
//! people look first.

use crate::plan::Problem;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use liquid_crds::Peer;
use liquid_crds::vocabulary::ACCESS_DENIED;
use tokio::sync::mpsc;
use tracing::debug;

/// What waits to be told. There are few kinds of problems; more than this at once only repeats them.
const QUEUE: usize = 32;

/// Packets of a peer were dropped.
#[derive(Debug, Clone)]
pub struct Denied {
    /// The peer.
    pub peer: String,
    /// UID of the Peer.
    pub uid: Option<String>,
}

#[derive(Debug)]
enum News {
    Problem(Problem),
    Denied(Denied),
}

/// Takes what is to be told.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<News>);

impl Events {
    /// Tells problems as Events about `about`, in a task of its own: the API server may be away for long.
    #[must_use]
    pub fn about(client: Client, about: ObjectReference) -> Self {
        let (sender, mut all) = mpsc::channel::<News>(QUEUE);
        let recorder = Recorder::new(client, Reporter::from("liquid-fabric"));
        tokio::spawn(async move {
            while let Some(news) = all.recv().await {
                let (event, regarding) = match news {
                    News::Problem(problem) => (problem_event(&problem), about.clone()),
                    News::Denied(denied) => denied_event(denied, &about),
                };
                if let Err(error) = recorder.publish(&event, &regarding).await {
                    debug!(%error, "event not written");
                }
            }
        });
        Self(sender)
    }

    /// Tells a problem, unless too much waits.
    pub fn tell(&self, problem: &Problem) {
        self.send(News::Problem(problem.clone()));
    }

    /// Tells of packets that were dropped, unless too much waits.
    pub fn tell_denied(&self, denied: Denied) {
        self.send(News::Denied(denied));
    }

    fn send(&self, news: News) {
        if let Err(error) = self.0.try_send(news) {
            debug!(%error, "event left out");
        }
    }
}

fn problem_event(problem: &Problem) -> Event {
    Event {
        type_: EventType::Warning,
        reason: problem.reason().to_owned(),
        note: Some(problem.to_string()),
        action: "Overlay".to_owned(),
        secondary: None,
    }
}

fn denied_event(denied: Denied, here: &ObjectReference) -> (Event, ObjectReference) {
    let Denied { peer, uid } = denied;
    let node = here.name.as_deref().unwrap_or_default();
    let event = Event {
        type_: EventType::Warning,
        reason: ACCESS_DENIED.to_owned(),
        note: Some(format!("node {node}: packets for what spec.network.access denies were dropped")),
        action: "Access".to_owned(),
        secondary: None,
    };
    let peer = ObjectReference {
        api_version: Some(Peer::api_version(&()).into_owned()),
        kind: Some(Peer::kind(&()).into_owned()),
        name: Some(peer),
        uid,
        ..ObjectReference::default()
    };
    (event, peer)
}
