//! Problems as Events on the Node or the gateway's Pod, where people look first.

use crate::plan::Problem;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tracing::debug;

/// Problems waiting to be told. There are eight kinds; more than this at once only repeats them.
const QUEUE: usize = 32;

/// Takes problems to be told.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Problem>);

impl Events {
    /// Tells problems as Events about `about`, in a task of its own: the API server may be away for long.
    #[must_use]
    pub fn about(client: Client, about: ObjectReference) -> Self {
        let (sender, mut problems) = mpsc::channel::<Problem>(QUEUE);
        let recorder = Recorder::new(client, Reporter::from("liquid-fabric"));
        tokio::spawn(async move {
            while let Some(problem) = problems.recv().await {
                let event = Event {
                    type_: EventType::Warning,
                    reason: problem.reason().to_owned(),
                    note: Some(problem.to_string()),
                    action: "Overlay".to_owned(),
                    secondary: None,
                };
                if let Err(error) = recorder.publish(&event, &about).await {
                    debug!(%error, "event not written");
                }
            }
        });
        Self(sender)
    }

    /// Tells a problem, unless too many wait.
    pub fn tell(&self, problem: &Problem) {
        if self.0.try_send(problem.clone()).is_err() {
            debug!(%problem, "event left out");
        }
    }
}
