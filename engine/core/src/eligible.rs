//! Who of a service's servers takes clients, decided of all of them together: backups, the panic threshold, who is held, and who says sorry.

use towpath_config::model::AdminState;

use crate::passive::Out;
use crate::snapshot::{Duty, Role, ServerHealth, Target};

/// Sets the duty of each member, and whether it counts as up although it is not. Comes last, when everything else about the members is known.
///
/// 1. Primaries serve. Backups wait, unless no primary is up, or fewer than `panic_threshold` percent; without a verdict is not down.
/// 2. Fewer than `panic_threshold` percent, and no backup that is up: the checks are not believed, and all that are ready serve.
/// 3. Still nobody: those that are held because they go up and down serve, for now they are up.
/// 4. Nobody at all: the sorry server serves.
pub fn settle(members: &mut [Target], panic_threshold: u8) {
    let is_wanted = |member: &Target| member.admin == AdminState::Ready && member.weight > 0;
    let is_up = |member: &Target| is_wanted(member) && member.health == ServerHealth::Up;
    let primaries = || members.iter().filter(|member| member.role == Role::Primary);
    let wanted = primaries().filter(|member| is_wanted(member)).count();
    let lost = primaries().filter(|member| is_wanted(member) && is_lost(member.health)).count();
    let is_any_up = primaries().any(is_up);
    let too_few = (wanted - lost) * 100 < wanted * usize::from(panic_threshold);
    let helps = members.iter().any(|member| member.role == Role::Backup && is_up(member));
    let panics = too_few && !helps;
    for member in &mut *members {
        member.duty = match member.role {
            Role::Backup if is_any_up && !too_few => Duty::Standby,
            Role::Backup | Role::Primary => Duty::Serving,
            Role::Sorry => Duty::LastResort,
        };
        // What a server says of itself is believed.
        member.fail_open = panics && member.health != ServerHealth::Up && !member.in_maintenance;
    }
    if !members.iter().any(Target::takes_new) {
        for member in members.iter_mut().filter(|member| member.health == ServerHealth::Held) {
            member.fail_open = true;
        }
    }
    if !members.iter().any(Target::takes_new) {
        for member in members.iter_mut().filter(|member| member.is_sorry()) {
            member.duty = Duty::Serving;
        }
    }
}

/// Takes out members at these places, for what clients have met there: one after the other as they were noticed, of those noticed together the
/// first of the file, and no more than that at least half of the primaries that are wanted stay up. It is a guess, and what all servers fail at may be the clients' or our own doing. Comes before [`settle`].
pub fn put_out(members: &mut [Target], mut outs: Vec<(usize, Out)>) {
    let is_wanted =
        |member: &Target| member.role == Role::Primary && member.admin == AdminState::Ready && member.weight > 0;
    let wanted = members.iter().filter(|member| is_wanted(member)).count();
    let mut up = members.iter().filter(|member| is_wanted(member) && member.health == ServerHealth::Up).count();
    outs.sort_by_key(|(place, out)| (out.since, *place));
    for (place, Out { reason, since }) in outs {
        let member = &mut members[place];
        if member.health != ServerHealth::Up {
            continue;
        }
        if is_wanted(member) {
            if (up - 1) * 2 < wanted {
                continue;
            }
            up -= 1;
        }
        (member.health, member.reason, member.since, member.returned) = (ServerHealth::Down, reason, since, None);
        member.is_out = true;
    }
}

/// Held ones have gone down, too, or they would not be held.
fn is_lost(health: ServerHealth) -> bool {
    match health {
        ServerHealth::Down | ServerHealth::Held => true,
        ServerHealth::Unknown | ServerHealth::Up => false,
    }
}

#[cfg(test)]
mod tests {
    use towpath_config::model::Balance;

    use super::*;
    use crate::fixtures::{service, target};
    use crate::time::Now;

    /// Members by letters: primaries U(p), D(own), H(eld), ?, R(etired: drained, up), 0 (weight 0, up); backups in lower case; S(orry).
    fn members(letters: &str) -> Vec<Target> {
        let member = |(place, letter): (usize, char)| {
            let mut member = target(place as u16);
            member.health = match letter.to_ascii_uppercase() {
                'D' => ServerHealth::Down,
                'H' => ServerHealth::Held,
                '?' => ServerHealth::Unknown,
                _ => ServerHealth::Up,
            };
            match letter {
                'R' => member.admin = AdminState::Drain,
                '0' => member.weight = 0,
                _ => {}
            }
            if letter.is_ascii_lowercase() {
                member.role = Role::Backup;
            }
            if letter == 'S' {
                member.role = Role::Sorry;
            }
            member
        };
        letters.chars().enumerate().map(member).collect()
    }

    /// Who takes clients (`+`), who waits (`o`), who waits for those as well (`.`), who neither (`-`).
    fn settled(letters: &str, panic_threshold: u8) -> String {
        let mut members = members(letters);
        settle(&mut members, panic_threshold);
        let sign = |member: &Target| match (member.takes_new(), member.stands_by()) {
            (true, _) => '+',
            (false, true) => 'o',
            (false, false) if member.is_last_resort() => '.',
            (false, false) => '-',
        };
        members.iter().map(sign).collect()
    }

    #[test]
    fn who_serves_of_which_members() {
        let table = [
            // Backups serve only while no primary is up.
            ("UUu", 0, "++o"),
            ("UDu", 0, "+-o"),
            ("DDu", 0, "--+"),
            ("DDud", 0, "--+-"),
            ("D?u", 0, "--+"),
            ("RRu", 0, "--+"),
            ("0Du", 0, "--+"),
            ("UUd", 0, "++-"),
            ("uu", 0, "++"),
            ("DDd", 0, "---"),
            ("", 50, ""),
            // Below the threshold they join in.
            ("UDDu", 50, "+--+"),
            ("UUDDu", 50, "++--o"),
            ("UU?Du", 75, "++--o"),
            // Where none helps, checks are not believed.
            ("UDDD", 50, "++++"),
            ("UDDDd", 50, "+++++"),
            ("DDDD", 1, "++++"),
            ("UUDD", 50, "++--"),
            ("UDDR", 50, "+++-"),
            ("UDD0", 50, "+++-"),
            ("???", 100, "---"),
            ("UD", 0, "+-"),
            // Held ones are the last.
            ("UHH", 0, "+--"),
            ("DHH", 0, "-++"),
            ("DHu", 0, "--+"),
            ("DHh", 0, "-++"),
            ("HHU", 50, "+++"),
            ("?H", 0, "-+"),
            // Who says sorry is not even asked before they are.
            ("UDS", 0, "+-."),
            ("DDS", 0, "--+"),
            ("R0S", 0, "--+"),
            ("D?S", 0, "--+"),
            ("DDuS", 0, "--+."),
            ("DUuS", 0, "-+o."),
            ("DDdS", 0, "---+"),
            ("DHS", 0, "-+."),
            ("UDDDS", 50, "++++."),
            ("RRS", 50, "--+"),
            ("DDS", 100, "++."),
        ];
        for (letters, panic_threshold, expected) in table {
            assert_eq!(settled(letters, panic_threshold), expected, "{letters}, {panic_threshold} %");
        }
    }

    #[test]
    fn clients_take_out_half_of_the_servers_at_most_and_the_first_noticed_first() {
        let out = |place, since| (place, Out { reason: "clients met errors".into(), since: Now(since) });
        type Case = (&'static str, Vec<(usize, Out)>, &'static str);
        let table: [Case; 6] = [
            ("U", vec![out(0, 1)], "+"),
            ("UU", vec![out(0, 1)], "-+"),
            ("UU", vec![out(0, 2), out(1, 1)], "+-"),
            ("UD", vec![out(0, 1)], "+-"),
            ("UUUUR", vec![out(0, 3), out(1, 2), out(2, 1), out(4, 0)], "+--+-"),
            ("UUu", vec![out(2, 1), out(0, 2)], "-+-"),
        ];
        for (letters, outs, expected) in table {
            let mut members = members(letters);
            put_out(&mut members, outs);
            settle(&mut members, 0);
            let taking: String = members.iter().map(|member| if member.takes_new() { '+' } else { '-' }).collect();
            assert_eq!(taking, expected, "{letters}");
        }
    }

    #[test]
    fn what_clients_met_ends_no_connection_and_a_check_does() {
        let mut service = service(Balance::RoundRobin, members("UU"));
        service.drop_on_failure = true;
        put_out(&mut service.targets, vec![(0, Out { reason: "clients met errors".into(), since: Now(1) })]);
        settle(&mut service.targets, 0);
        assert!(!service.targets[0].takes_new() && !service.drops_flows_of(&service.targets[0]));
        service.targets[1].health = ServerHealth::Down;
        assert!(service.drops_flows_of(&service.targets[1]));
    }

    #[test]
    fn settling_again_undoes_what_no_longer_holds() {
        let mut members = members("DDu");
        settle(&mut members, 0);
        assert!(members[2].takes_new());
        members[0].health = ServerHealth::Up;
        settle(&mut members, 0);
        assert!(members[0].takes_new() && members[2].stands_by());
        members.iter_mut().for_each(|member| member.health = ServerHealth::Down);
        settle(&mut members, 10);
        assert!(members.iter().all(|member| member.fail_open));
        // By its agent: what a server says of itself is believed.
        members[0].in_maintenance = true;
        settle(&mut members, 10);
        assert_eq!(members.iter().map(|member| member.fail_open).collect::<Vec<_>>(), [false, true, true]);
        members[1].health = ServerHealth::Up;
        settle(&mut members, 10);
        assert!(members.iter().all(|member| !member.fail_open));
    }
}
