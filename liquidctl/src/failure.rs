//! How commands fail: bad input ends with exit code 2, everything else with 1.

use kube::core::Status;
use thiserror::Error;

/// Why a command did not do what was asked.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// What was asked cannot be done by anyone.
    #[error("{0}")]
    Input(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Input(_) => 2,
            Failure::Failed(_) => 1,
        }
    }

    /// Bad input.
    pub(crate) fn input(message: impl ToString) -> Self {
        Self::Input(message.to_string())
    }

    /// A failure.
    pub(crate) fn failed(message: impl ToString) -> Self {
        Self::Failed(message.to_string())
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.is_forbidden() => Self::failed(format!(
                "the API server forbids it: {}; use a kubeconfig with administrator rights",
                status.message
            )),
            kube::Error::Api(status) if lacks_definitions(&status) => {
                Self::failed("Liquid is not installed in this cluster: run `liquidctl install` first")
            }
            kube::Error::Api(status) if status.is_invalid() => Self::Input(status.message),
            kube::Error::Api(status) => Self::failed(format!("the API server says: {}", status.message)),
            other => Self::failed(format!("the API server cannot be reached: {other}")),
        }
    }
}

/// Whether the API server does not serve the API group at all, as opposed to not having the object: it then answers
/// with the plain text "404 page not found", or, for a group it has just lost, that it "could not find the requested
/// resource".
fn lacks_definitions(status: &Status) -> bool {
    let plain = ["404 page not found", "the server could not find the requested resource"];
    // `Status::is_not_found` of kube 5.0 knows only the reason "NotFound", which plain text does not come with.
    status.code == 404 && plain.iter().any(|text| status.message.contains(text))
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: Status) -> String {
        Failure::from(kube::Error::Api(status.boxed())).to_string()
    }

    #[test]
    fn an_api_group_that_is_not_served_is_told_from_an_object_that_is_not_there() {
        // The API server answers with plain text; kube makes this of it.
        let plain = Status::failure("404 page not found", "Failed to parse error data").with_code(404);
        let plain = said(plain);
        assert!(plain.contains("Liquid is not installed"), "{plain}");
        let missing = Status::failure("peers.liquid.mesh \"milan\" not found", "NotFound").with_code(404);
        assert_eq!(said(missing), "the API server says: peers.liquid.mesh \"milan\" not found");
    }
}
