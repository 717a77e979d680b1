//! The product on a real Kubernetes. Runs inside the laptop of `scripts/cluster` (`scripts/test` does that): root, a
//! network namespace without a way out, whose dead end counts what was not redirected. With `KSHUTTLE_TEST_CONTEXT`
//! the tests that redirect nothing run against that context instead.
//!
//! Arguments: names (or parts of names) of the tests to run; `--list`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of this is a test")]

mod admission;
mod carry;
mod datagrams;
mod end;
mod existing;
mod faults;
mod forward;
mod ipv6;
mod life;
#[cfg(target_os = "linux")]
mod names;
#[cfg(not(target_os = "linux"))]
#[path = "names/elsewhere.rs"]
mod names;
mod place;
mod pod;
mod ranges;
mod reach;
mod redirect;
mod rights;
mod runtime;
mod scene;
mod skew;
mod socks;
mod ssh;
mod streams;
mod survive;
mod upload;
mod ways;

use std::process::ExitCode;

use kshuttle_test_support::harness::{Test, run};
use kshuttle_test_support::tests;

const REDIRECTED: &[Test] = tests! {
    reach:
        services_and_pods_answer_over_both_families,
        without_subnets_the_cluster_tells_its_ranges,
        a_refused_port_is_an_error_at_once,
        a_black_hole_hangs_nobody_else,
        excluded_ranges_are_left_alone,
        nothing_leaks_in_a_hundred_thousand_connects;
    datagrams:
        cluster_dns_answers_over_udp_and_tcp,
        ten_thousand_datagrams_come_back,
        one_socket_talks_to_several_services,
        many_sockets_at_once,
        without_udp_it_is_left_alone;
    ipv6:
        from_a_global_address,
        from_a_unique_local_address,
        with_only_a_link_local_address_it_is_told,
        with_only_a_link_local_address_and_routes_of_its_own,
        without_any_address_and_routes_of_its_own;
    redirect:
        ranges_come_from_a_file,
        one_port_of_an_address_is_left_alone,
        iptables_serves_as_well,
        without_rules_it_listens_all_the_same,
        narrow_redirects_what_there_is_and_follows,
        a_new_node_s_pods_are_reached,
        the_same_range_twice_is_refused_and_others_are_not,
        five_thousand_connections_at_once,
        running_out_of_descriptors_is_survived,
        a_storm_of_connections_is_refused_at_the_bound,
        own_addresses_stay_own;
    carry:
        a_gibibyte_each_way_arrives_whole,
        two_hundred_connections_at_once,
        half_close_is_kept,
        the_pods_reset_arrives_as_a_reset,
        an_application_that_never_reads_holds_back_nobody;
    survive:
        flows_do_not_notice_resets_of_the_connection,
        flows_do_not_notice_that_connections_are_renewed;
    end:
        signals_stop_in_order,
        a_second_signal_waits_for_nothing,
        sigkill_of_kshuttle_leaves_nothing,
        sigkill_of_the_helper_leaves_nothing,
        ctrl_c_while_starting_leaves_nothing,
        a_pod_that_ends_is_replaced;
    existing:
        an_openssh_9_pod_carries_redirected_connections,
        an_openssh_8_pod_carries_redirected_connections;
    rights:
        as_root_it_keeps_no_capability,
        through_sudo_it_becomes_the_user_again,
        a_user_runs_only_the_helper_as_root;
};

const BOX: &[Test] = tests! {
    socks:
        addresses_and_names_without_root;
    forward:
        pods_and_services_by_every_name,
        several_ports_over_websocket,
        several_ports_over_spdy,
        a_refused_port_leaves_the_other_connections_alone,
        an_answer_after_the_applications_end_is_whole,
        a_reset_of_the_pod_and_the_end_of_the_command_are_resets,
        the_next_connection_reaches_the_replacement,
        a_named_pod_that_is_gone_ends_it,
        what_cannot_be_forwarded_is_told;
    existing:
        a_pod_of_ours_that_is_there_gets_a_link_and_stays,
        what_does_not_fit_the_pod_is_told;
    upload:
        a_container_with_a_shell_carries_connections_and_is_left_as_it_was,
        an_uploaded_server_outlives_its_exec_and_comes_again_when_killed,
        what_keeps_the_server_out_of_a_container_is_told;
    faults:
        the_api_server_is_killed,
        the_container_runtime_is_killed,
        the_kubelet_is_killed,
        the_pod_is_deleted,
        the_pod_is_deleted_by_force,
        the_api_server_hangs,
        the_network_swallows_everything;
    ways:
        proxies_of_the_environment_carry_everything,
        proxies_of_the_kubeconfig_carry_everything,
        proxies_lead_to_ipv6,
        no_proxy_exempts,
        a_proxy_that_is_not_there_is_named,
        a_client_certificate_is_shown,
        a_token_is_shown,
        an_exec_plugin_is_asked,
        one_acts_as_somebody_else,
        what_somebody_else_may_not_is_named;
    streams:
        auto_takes_the_first_way_the_api_server_knows,
        auto_falls_back_to_what_is_permitted,
        bytes_sent_before_any_reply_arrive,
        bytes_arrive_whole_both_ways,
        a_hundred_connections_at_once,
        a_refused_port_is_told_in_the_runtimes_words,
        a_reset_by_the_pod_is_a_reset,
        ends_are_clean_whoever_comes_first,
        left_downloads_leave_nothing_behind,
        paused_readers_cost_bounded_memory_and_lose_nothing,
        streams_that_are_never_confirmed_are_told,
        a_pod_that_goes_ends_its_streams_and_is_not_found_then;
    runtime:
        replies_and_data_come_in_any_order,
        two_thousand_streams_fit_one_connection,
        a_reset_download_runs_on_beside_the_next_pair,
        half_a_pair_is_told_without_an_end;
    place:
        the_restricted_namespace_takes_it_from_a_limited_user,
        an_image_serves_as_well,
        missing_rights_are_named_with_the_role_to_ask_for;
    admission:
        a_patch_reaches_the_pod,
        a_policy_is_quoted_before_anything_is_made,
        a_full_quota_is_quoted_before_anything_is_made,
        a_quota_that_wants_limits_gets_them_by_the_patch_in_the_hint,
        a_limit_range_is_quoted_and_met_by_the_patch_in_the_hint,
        an_image_that_is_not_there_is_told_in_the_kubelets_words,
        an_image_of_another_architecture_is_told,
        nodes_of_another_architecture_only_are_told,
        a_volume_that_is_not_there_is_told_while_waiting,
        preemption_is_told_and_ends_it_when_there_is_no_room_left,
        each_right_that_is_missing_is_told_or_done_without,
        a_program_that_is_there_needs_no_right_to_bring_it;
    life:
        killed_sessions_leave_no_pod_and_others_keep_theirs,
        a_killed_sessions_pod_serves_the_next_if_it_is_the_same,
        cleanup_lists_and_then_removes,
        an_evicted_pod_is_replaced,
        a_drained_cluster_is_a_clear_end,
        a_deleted_namespace_is_a_clear_end;
    ssh:
        openssh_forwards_through_the_pod,
        openssh_gets_nothing_else_and_the_key_goes_with_the_session,
        the_pods_port_is_not_on_the_pod_network;
    pod:
        the_role_is_enough_in_a_restricted_namespace_for_any_user_id,
        refusals_name_what_is_missing,
        a_policys_refusal_is_told,
        the_address_of_the_api_server_is_guarded;
    ranges:
        the_cluster_tells_its_ranges_and_by_whom,
        who_is_limited_to_a_namespace_gets_its_addresses_only,
        kubeadm_and_calico_tell_who_may_read_theirs,
        a_new_node_and_a_new_service_are_noticed,
        narrow_is_every_address_but_the_nodes,
        a_killed_api_server_is_outlived;
};

/// With the programs of `scripts/older`.
const OLDER: &[Test] = tests! {
    skew:
        a_client_of_today_works_with_an_older_pod,
        an_older_client_works_with_a_pod_of_today,
        two_versions_in_one_namespace_do_not_disturb_each_other;
};

/// Where containerd ends idle streams after seconds (`KSHUTTLE_BOX_STREAM_IDLE` of `scripts/cluster up`), not after 4 hours.
const IDLE: &[Test] = tests! {
    runtime:
        pings_hold_off_the_idle_timer,
        after_standing_still_the_end_is_heard_at_once;
};

const ANY_CLUSTER: &[Test] = tests! {
    socks:
        the_api_server_answers_by_its_name_in_the_cluster,
        a_taken_port_is_told;
    place:
        errors_have_their_exit_codes;
    pod:
        an_administrator_gets_an_image_that_is_on_every_node,
        an_image_that_is_not_to_be_had_is_known_at_once,
        an_ended_program_is_quoted,
        an_exchanged_part_is_refused_by_the_loader_and_an_exchanged_loader_by_us,
        an_idle_server_ends_and_the_next_session_removes_its_pod;
};

/// Tests of what not every Kubernetes has: the minor version that brought it, and its name.
const SINCE: &[(&str, u32, &str)] = &[
    ("pod::a_policys_refusal_is_told", 23, "Pod Security admission"),
    ("admission::a_policy_is_quoted_before_anything_is_made", 23, "Pod Security admission"),
    ("admission::preemption_is_told_and_ends_it_when_there_is_no_room_left", 26, "reasons for deleted pods"),
    ("life::an_evicted_pod_is_replaced", 26, "reasons for deleted pods"),
    ("life::a_drained_cluster_is_a_clear_end", 22, "eviction by policy/v1"),
    ("forward::several_ports_over_websocket", 31, "port-forward by SPDY within WebSocket"),
    // Built with a newer Go than its own, 1.20 dies when it serves them (modern-go/reflect2 before 1.0.2).
    ("ranges::kubeadm_and_calico_tell_who_may_read_theirs", 24, "custom resources that bear our Go"),
];

fn main() -> ExitCode {
    let (inside, context) =
        (std::env::var_os("KSHUTTLE_BOX_INSIDE"), std::env::var_os("KSHUTTLE_TEST_CONTEXT"));
    let programs = std::env::var_os("KSHUTTLE_TEST_PROGRAMS");
    let missing = (programs.is_none() || (inside.is_none() && context.is_none()))
        .then(|| "not inside the laptop of `scripts/cluster`: `scripts/test` runs them".to_owned());
    let tests = if inside.is_some() {
        [REDIRECTED, names::TESTS, BOX, ANY_CLUSTER, IDLE, OLDER].concat()
    } else {
        ANY_CLUSTER.to_vec()
    };
    run(&tests, |name| {
        let too = too_old(name).or_else(|| too_patient(name)).or_else(|| too_young(name));
        missing.clone().or(too).or_else(|| names::missing(name))
    })
}

/// Why this test cannot run on the box's version of Kubernetes (`1.MINOR`, from `scripts/cluster exec`).
fn too_old(test: &str) -> Option<String> {
    let version = std::env::var("KSHUTTLE_BOX_VERSION").ok()?;
    let minor: u32 = version.strip_prefix("1.")?.parse().ok()?;
    let (_, since, what) = SINCE.iter().find(|(name, since, _)| *name == test && minor < *since)?;
    Some(format!("Kubernetes {version} has no {what}, which came with 1.{since}"))
}

/// Why this test has nothing older to meet.
fn too_young(test: &str) -> Option<String> {
    (skew::folder().is_none() && OLDER.iter().any(|(name, _)| *name == test))
        .then(|| "KSHUTTLE_TEST_OLDER does not name the programs of scripts/older".to_owned())
}

/// Why this test cannot run with the box's container runtime.
fn too_patient(test: &str) -> Option<String> {
    (runtime::idle().is_none() && IDLE.iter().any(|(name, _)| *name == test))
        .then(|| "the runtime keeps idle streams for hours: see KSHUTTLE_BOX_STREAM_IDLE".to_owned())
}
