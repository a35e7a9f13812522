//! Permission bits and groups of the tree's files, by what they show.
//!
//! A file has one group. Where `--group` and `--stats-group` name two, the files of counts have an access control list
//! as well, which the kernel checks like the bits.

use crate::config::options::Access;
use crate::tree::inode::{Class, Node};

/// The attribute in which the kernel asks for a file's list.
pub(super) const ACL: &str = "system.posix_acl_access";

const ACL_VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
/// Tags of a list's entries, in their order.
const USER_OBJ: u16 = 1;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;
const READ: u16 = 4;

/// Returns the permission bits of a node.
pub(super) fn bits(access: &Access, node: Node, class: Class) -> u16 {
    let bits = match class {
        Class::Stats if access.stats_gid.is_some() => 0o440,
        _ => class.permissions(access.group_reads, access.makers as u16),
    };
    match access.mode {
        Some(mode) if node.shows_messages() => mode as u16,
        _ => bits,
    }
}

/// Returns the group of a node.
pub(super) fn gid(access: &Access, class: Class) -> u32 {
    match access.stats_gid {
        Some(gid) if class == Class::Stats && !needs_acl(access) => gid,
        _ => access.gid,
    }
}

/// Returns whether the files of counts are for two groups.
pub(super) fn needs_acl(access: &Access) -> bool {
    access.group_reads && access.stats_gid.is_some_and(|gid| gid != access.gid)
}

/// Reports that the kernel takes no access control lists.
pub(super) fn tell_no_acl() {
    log::warn!("the kernel takes no access control lists of FUSE: --stats-group is as if it were not given");
}

/// Returns the access control list of a node, if it has one.
pub(super) fn acl(access: &Access, class: Class) -> Option<Vec<u8>> {
    let gid = access.stats_gid.filter(|_| class == Class::Stats && needs_acl(access))?;
    let mut list = ACL_VERSION.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (USER_OBJ, READ, NO_ID),
        (GROUP_OBJ, READ, NO_ID),
        (GROUP, READ, gid),
        (MASK, READ, NO_ID),
        (OTHER, 0, NO_ID),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(perm.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_counts_are_for_both_groups() {
        let none = Access { uid: 0, gid: 1, group_reads: false, mode: None, makers: 0, stats_gid: None };
        let stats = Access { stats_gid: Some(5), ..none.clone() };
        let both = Access { group_reads: true, ..stats.clone() };
        let same = Access { stats_gid: Some(1), ..both.clone() };
        let of = |access: &Access| {
            (bits(access, Node::Status, Class::Stats), gid(access, Class::Stats), needs_acl(access))
        };
        assert_eq!(of(&none), (0o400, 1, false));
        assert_eq!(of(&stats), (0o440, 5, false));
        assert_eq!(of(&both), (0o440, 1, true));
        assert_eq!(of(&same), (0o440, 1, false));
        assert_eq!(bits(&stats, Node::Relay, Class::Private), 0o400, "not for the group");
        assert_eq!(gid(&stats, Class::Private), 1);
        assert_eq!(acl(&both, Class::Private), None);
        let list = acl(&both, Class::Stats).unwrap();
        assert_eq!((list.len(), &list[20..28]), (44, &[8, 0, 4, 0, 5, 0, 0, 0][..]));
    }
}
