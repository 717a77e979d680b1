//! What users hear about the network that their machine is in, before they wonder.

use ipnet::IpNet;

use super::TOLD_MAX;
use crate::cli::RedirectArgs;
use crate::proxy::redirect::has_route;
use crate::report::Steps;
use crate::surroundings;

/// Those of these ranges that this machine cannot send to, and therefore not have redirected either.
pub(super) fn of_missing_routes(ranges: Vec<&IpNet>, args: &RedirectArgs, steps: &mut Steps) {
    for net in ranges.into_iter().filter(|net| !has_route(net)).take(TOLD_MAX) {
        let remedy =
            if net.addr().is_ipv6() && !args.ipv6_routes { ", or --ipv6-routes makes one" } else { "" };
        steps.say(format_args!(
            "warning: this machine has no route towards {net}; connections there fail until it has one{remedy}"
        ));
    }
}

/// Networks that this machine reaches in a way of its own, and that the rules would take.
pub(super) fn of_surroundings(include: &[IpNet], exclude: &[IpNet], args: &RedirectArgs, steps: &mut Steps) {
    if args.narrow {
        return; // single addresses of the cluster: whoever asked for that knows
    }
    let met = surroundings::overlapping(&surroundings::networks(), include, exclude);
    for network in met.iter().take(TOLD_MAX) {
        steps.say(format_args!(
            "warning: this machine's own network {network} meets the redirected ranges and is redirected, too; -x {} leaves it \
             alone, --narrow redirects only addresses that the cluster has",
            network.net
        ));
    }
    if met.len() > TOLD_MAX {
        steps.say(format_args!("warning: and {} more such networks", met.len() - TOLD_MAX));
    }
}
