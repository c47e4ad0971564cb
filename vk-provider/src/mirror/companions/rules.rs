//! Which companions of a kind are wanted in the provider.

use crate::translate::Access;
use liquid_crds::{
    ConfigurationReflection, IngressReflection, PolicyReflection, Reflection, ServiceReflection,
    TokenReflection,
};
use liquid_reflection::Kind;

/// Which companions of a kind are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Those that Liquid makes for pods, and no others.
    Own,
    /// Those that something refers to.
    Referenced,
    /// All.
    All,
}

/// What pods of a namespace have of home's API server; `way` says whether they can reach it.
pub(super) fn access(reflection: &Reflection, way: bool) -> Access {
    match reflection.service_account_tokens {
        TokenReflection::None => Access::None,
        TokenReflection::Bound if way => Access::Server,
        TokenReflection::Bound => Access::Tokens,
    }
}

/// The rule for a kind; `None` if it is not reflected. `network` says whether pods of both clusters reach each other.
pub(super) fn rule(kind: Kind, reflection: &Reflection, access: Access, network: bool) -> Option<Rule> {
    let services = reflection.services == ServiceReflection::All;
    let configuration = |which| match which {
        ConfigurationReflection::Referenced => Some(Rule::Referenced),
        ConfigurationReflection::All => Some(Rule::All),
        ConfigurationReflection::None => (access != Access::None).then_some(Rule::Own),
    };
    let way = (access == Access::Server).then_some(Rule::Own);
    match kind {
        Kind::ConfigMap => configuration(reflection.config_maps),
        Kind::Secret => configuration(reflection.secrets),
        Kind::Service => services.then_some(Rule::All).or(way),
        // Without a network between the clusters nobody there reaches what is in them.
        Kind::EndpointSlice => (services && network).then_some(Rule::All).or(way),
        Kind::NetworkPolicy => (reflection.network_policies == PolicyReflection::All).then_some(Rule::All),
        Kind::Ingress => (reflection.ingresses == IngressReflection::All).then_some(Rule::All),
        Kind::Namespace | Kind::PersistentVolumeClaim | Kind::Pod => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_of_no_use_without_a_network_or_their_services() {
        let reflection = Reflection::default();
        let rule = |kind, reflection: &Reflection, network| rule(kind, reflection, Access::None, network);
        assert_eq!(rule(Kind::EndpointSlice, &reflection, true), Some(Rule::All));
        assert_eq!(rule(Kind::EndpointSlice, &reflection, false), None);
        assert_eq!(rule(Kind::Service, &reflection, false), Some(Rule::All));
        let none = Reflection { services: ServiceReflection::None, ..reflection };
        assert_eq!(rule(Kind::EndpointSlice, &none, true), None);
    }

    #[test]
    fn what_pods_need_for_homes_api_server_goes_whatever_else_does() {
        let nothing = Reflection {
            config_maps: ConfigurationReflection::None,
            secrets: ConfigurationReflection::None,
            services: ServiceReflection::None,
            service_account_tokens: TokenReflection::Bound,
            ..Reflection::default()
        };
        assert_eq!((access(&nothing, false), access(&nothing, true)), (Access::Tokens, Access::Server));
        assert_eq!(access(&Reflection::default(), true), Access::None);
        for (kind, tokens, server) in [
            (Kind::ConfigMap, Some(Rule::Own), Some(Rule::Own)),
            (Kind::Secret, Some(Rule::Own), Some(Rule::Own)),
            (Kind::Service, None, Some(Rule::Own)),
            (Kind::EndpointSlice, None, Some(Rule::Own)),
        ] {
            assert_eq!(rule(kind, &nothing, Access::None, true), None);
            assert_eq!(rule(kind, &nothing, Access::Tokens, true), tokens);
            assert_eq!(rule(kind, &nothing, Access::Server, true), server);
        }
    }
}
