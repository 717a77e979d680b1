//! `kshuttle cleanup`: shows what is left in the namespace, and removes it when told to.

use super::{connect_cluster, is_over, owner};
use crate::cli::{CleanupArgs, ClusterArgs};
use crate::cluster::sshd_pod::left_over::{self, PodState};
use crate::report::{Steps, answer, chain};

/// Lists the left-overs of this user on this machine and the programs that no pod runs; with `--yes` removes them.
///
/// # Errors
/// When the namespace's pods cannot be listed, or something cannot be removed.
pub async fn cleanup(cluster: &ClusterArgs, args: &CleanupArgs) -> anyhow::Result<()> {
    let mut steps = Steps::default();
    let cluster = connect_cluster(cluster, &mut steps).await?;
    let pods = left_over::pods(&cluster, &owner(), is_over).await?;
    let done = if args.yes { "deleted" } else { "left over" };
    let (mut listed, mut alive, mut others) = (0, 0, 0);
    for pod in &pods {
        let why = match &pod.state {
            PodState::Ended => "its server has ended",
            PodState::SessionDead => "its session is dead",
            PodState::MayLive => {
                alive += 1;
                continue;
            }
            PodState::Others(_) => {
                others += 1;
                continue;
            }
        };
        if args.yes {
            left_over::delete_pod(&cluster, pod).await?;
        }
        answer(format_args!("pod/{}  {done}: {why}", pod.name));
        listed += 1;
    }
    match left_over::unused_programs(&cluster).await {
        Ok(programs) => {
            for program in &programs {
                if args.yes {
                    left_over::delete_program(&cluster, program).await?;
                }
                answer(format_args!("configmap/{}  {done}: no pod runs this program", program.name));
                listed += 1;
            }
        }
        // The Role of a user has no right to it; an administrator can.
        Err(error) => steps.say(format_args!("  …         programs are left alone: {}", chain(&error))),
    }
    if alive + others > 0 {
        steps.say(format_args!(
            "  …         left alone: {alive} pods of sessions that may live, {others} of others"
        ));
    }
    match (listed, args.yes) {
        (0, _) => steps.say("nothing is left over"),
        (_, false) => steps.say("`kshuttle cleanup --yes` removes it"),
        _ => {}
    }
    Ok(())
}
