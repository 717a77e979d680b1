//! The root helper against the real kernel. Each test has a network namespace of its own, whose only way out is a dead
//! end that counts what goes in. Needs root, `ip` (iproute2), `nft` (nftables), iptables and conntrack; for links,
//! `KSHUTTLE_TEST_RESOLVER=$(scripts/resolver-packages)`.
//!
//! Arguments: names (or parts of names) of the tests to run; `--list`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of this is a test")]

mod answers;
mod datagrams;
mod elevation;
mod helper;
mod iptables;
mod link;
mod link_end;
mod link_scene;
mod listener;
mod names;
mod neighbour;
mod programs;
mod ranges;
mod redirect;
mod refuse;
mod routes;
mod scene;
mod sockets;
mod standing;
mod undo;

use std::process::ExitCode;

use kshuttle_test_support::harness::{Test, run};
use kshuttle_test_support::tests;

const TESTS: &[Test] = tests! {
    redirect:
        both_families_arrive_with_their_destination,
        excludes_are_left_alone,
        addresses_of_this_machine_are_left_alone,
        nothing_leaks_over_reused_source_ports,
        what_is_not_translated_is_dropped,
        answers_to_included_addresses_pass,
        a_foreign_flush_does_not_open_the_way,
        two_helpers_do_not_disturb_each_other,
        the_largest_plan_is_carried_out;
    ranges:
        other_ranges_replace_the_first,
        what_stands_towards_a_new_range_goes_on,
        ranges_that_are_refused_leave_the_first,
        single_ports_are_left_alone,
        only_these_users_and_groups,
        only_this_control_group,
        containers_behind_a_bridge;
    datagrams:
        one_socket_to_many_destinations,
        a_port_used_again_is_asked_again,
        their_timeouts_are_ours,
        what_was_sent_before_is_redirected_now,
        without_a_port_they_are_left_alone,
        containers_behind_a_bridge;
    names:
        each_server_has_a_port_of_its_own,
        who_was_connected_follows_at_once,
        tcp_connections_that_stand_go_on,
        a_query_in_flight_is_answered,
        other_servers_replace_the_first,
        servers_that_are_refused_leave_the_first,
        a_foreign_flush_changes_nothing,
        by_iptables_they_go_where_they_should,
        by_iptables_who_was_connected_follows_at_once,
        by_iptables_a_foreign_flush_is_mended;
    sockets:
        they_reach_the_servers,
        used_ports_are_not_confused,
        they_are_not_for_everybody,
        a_group_that_somebody_has_is_not_taken,
        sessions_ask_each_other_in_a_row,
        the_number_of_sessions_is_bounded;
    iptables:
        both_families_go_where_they_should,
        who_is_logged_in_stays,
        a_foreign_flush_is_mended,
        other_ranges_replace_the_first,
        sigkill_is_undone_by_the_watchdog,
        what_both_left_is_taken_out_by_the_next,
        the_same_session_twice_is_refused,
        it_serves_where_nft_is_missing;
    standing:
        who_is_logged_in_stays,
        who_is_logged_in_by_a_socket_of_both_families_stays,
        what_this_machine_made_goes_on,
        all_go_on_where_conntrack_knew_them,
        a_stateful_firewall_lets_them_go_on,
        a_reused_source_port_is_redirected,
        a_reused_source_port_is_redirected_where_conntrack_knew_it;
    undo:
        end_of_input_leaves_nothing,
        a_socket_pair_serves_as_well,
        sigterm_leaves_nothing,
        stop_resets_applications_and_reports,
        translation_outlives_the_flush,
        nothing_leaks_while_the_undo_waits,
        sigkill_is_undone_by_the_watchdog,
        sigkill_of_both_is_undone_by_the_kernel,
        signals_of_the_terminal_are_not_heard,
        lost_rules_are_told;
    routes:
        connections_and_datagrams_arrive,
        by_iptables_they_arrive_as_well,
        without_being_asked_for_there_are_none,
        our_address_is_for_what_is_included,
        two_sessions_have_a_link_each,
        other_ranges_have_other_routes,
        a_link_that_is_gone_is_told_with_the_next_range,
        where_they_cannot_be_made_the_rules_stand,
        end_of_input_leaves_nothing,
        sigterm_leaves_nothing,
        sigkill_is_undone_by_the_watchdog,
        sigkill_of_all_is_undone_by_the_kernel,
        sigkill_of_both_is_undone_by_the_kernel,
        nothing_leaks_while_the_undo_waits;
    refuse:
        a_bad_plan_is_refused_by_its_field,
        a_second_plan_ends_it,
        what_is_not_understood_ends_it,
        hostile_conversations_end_without_a_trace,
        the_same_session_twice_is_refused,
        without_root_it_says_so,
        a_terminal_is_refused,
        what_is_no_conversation_is_refused,
        a_set_uid_bit_is_refused,
        the_environment_says_nothing,
        version_and_help;
    link:
        names_inside_are_asked_of_the_stub_and_no_others,
        a_stub_of_ipv6_serves_as_well,
        search_domains_complete_short_names,
        a_name_asked_before_is_found_afterwards_and_not_after_the_end,
        other_domains_replace_the_first,
        the_system_s_own_settings_may_be_strict,
        it_survives_a_restart_of_resolved,
        two_sessions_have_a_link_each,
        a_silent_stub_holds_back_no_other_names,
        a_dead_stub_fails_and_holds_back_no_other_names,
        the_stub_may_be_slow;
    link_end:
        what_is_refused_leaves_the_first,
        without_resolved_it_is_refused_and_the_rules_stand,
        a_resolved_that_hangs_is_not_waited_for,
        without_rules_it_is_an_error,
        without_the_right_to_namespaces_it_is_refused,
        a_link_of_that_name_is_not_touched,
        stop_leaves_nothing,
        end_of_input_leaves_nothing,
        sigterm_leaves_nothing,
        sigkill_leaves_nothing,
        sigkill_of_all_leaves_nothing,
        a_link_that_somebody_took_away_is_made_anew_when_said_again,
        settings_that_somebody_changed_are_restored_when_said_again;
    programs:
        by_nft_only_listed_programs_run,
        by_iptables_only_listed_programs_run,
        with_a_link_only_listed_programs_run,
        with_routes_only_listed_programs_run;
    elevation:
        sudo_runs_only_the_helper,
        doas_runs_only_the_helper;
};

fn main() -> ExitCode {
    let missing = scene::missing();
    run(TESTS, |name| {
        missing.clone().or_else(|| elevation::missing(name)).or_else(|| link_scene::missing(name))
    })
}
