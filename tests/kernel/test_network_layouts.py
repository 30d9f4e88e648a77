"""What we know of networks is what the system's headers say."""

from pathlib import Path

from test_layouts import told_by_c

from needs import needs
from woodfrog.kernel import xtables
from woodfrog.kernel.netlink import messages, nf_messages, rtnetlink
from woodfrog.resources.network import layouts, others, state
from woodfrog.resources.packet_filters import compatible, nftables

pytestmark = needs("command gcc")

HEADERS = "".join(
    f"#include <{name}.h>\n"
    for name in (
        "stddef",
        "stdio",
        "netinet/in",
        "linux/if",
        "linux/if_addr",
        "linux/if_link",
        "linux/fib_rules",
        "linux/neighbour",
        "linux/net_namespace",
        "linux/netfilter/ipset/ip_set",
        "linux/netfilter/nf_tables",
        "linux/netfilter_ipv4/ip_tables",
        "linux/netfilter_ipv6/ip6_tables",
        "linux/nexthop",
        "linux/rtnetlink",
        "linux/veth",
        "linux/xfrm",
    )
)
OURS = {
    **{
        f"RTM_NEW{name}": value
        for name, value in {
            "LINK": rtnetlink.NEW_LINK,
            "ADDR": rtnetlink.NEW_ADDRESS,
            "ROUTE": rtnetlink.NEW_ROUTE,
            "NEIGH": rtnetlink.NEW_NEIGHBOUR,
            "RULE": rtnetlink.NEW_RULE,
            "QDISC": rtnetlink.NEW_QDISC,
            "NEXTHOP": rtnetlink.NEW_NEXT_HOP,
            "LINKPROP": rtnetlink.NEW_LINK_PROPERTY,
        }.items()
    },
    **{
        name: getattr(layouts, name)
        for name in vars(layouts)
        if name.startswith(("IFLA_", "IFA_", "RTA_", "NDA_", "FRA_", "NHA_", "VETH_"))
        and isinstance(getattr(layouts, name), int)
    },
    "NTF_PROXY": rtnetlink.NTF_PROXY,
    "NTF_SELF": state._NTF_SELF,
    "NTF_MASTER": state._NTF_MASTER,
    "NUD_PERMANENT": state._NUD_PERMANENT,
    "NUD_NOARP": state._NUD_NOARP,
    "IFF_RUNNING": state.IFF_RUNNING,
    "IFA_F_SECONDARY": state._IFA_F_SECONDARY,
    "RTPROT_KERNEL": state.RTPROT_KERNEL,
    "RTPROT_RA": state.RTPROT_RA,
    "RTPROT_REDIRECT": state.RTPROT_REDIRECT,
    "RTM_F_CLONED": state._RTM_F_CLONED,
    "RTNH_F_ONLINK": state._RTNH_F_ONLINK,
    "FIB_RULE_INVERT | FIB_RULE_FIND_SADDR": state._RULE_FLAGS,
    "RTM_GETNSID": messages._RTM_GETNSID,
    "NETNSA_FD": messages._NETNSA_FD,
    "NETNSA_NSID": messages._NETNSA_NSID,
    "NFT_MSG_NEWSET": nf_messages.NEW_SET,
    "NFT_MSG_NEWSETELEM": nf_messages.NEW_ELEMENTS,
    "NFT_MSG_NEWOBJ": nf_messages.NEW_OBJECT,
    "NFT_MSG_NEWFLOWTABLE": nf_messages.NEW_FLOWTABLE,
    "NFTA_SET_ID": nftables._SET_ID,
    "NFTA_CHAIN_FLAGS": nftables._CHAIN_FLAGS,
    "NFT_CHAIN_BINDING": nftables._CHAIN_BINDING,
    "NFTA_VERDICT_CHAIN": nftables._VERDICT_CHAIN,
    "NFTA_RULE_COMPAT": compatible._RULE_COMPAT,
    "NFT_META_L4PROTO": compatible._L4PROTO,
    "XFRM_MSG_NEWSA": others._NEW_STATE,
    "XFRM_MSG_NEWPOLICY": others._NEW_POLICY,
    "IPSET_CMD_LIST": others._IPSET_LIST,
    "IPSET_ATTR_SETNAME": others._IPSET_ATTR_SETNAME,
    "IPSET_ATTR_FLAGS": others._IPSET_ATTR_FLAGS,
    "IPT_SO_SET_REPLACE": xtables._REPLACE,
    "IPT_SO_GET_ENTRIES": xtables._GET_ENTRIES,
    "sizeof(struct ipt_getinfo)": xtables._INFO.size,
    "offsetof(struct ipt_get_entries, entrytable)": xtables._ASKED.size,
    "offsetof(struct xt_counters_info, counters)": xtables._ASKED.size,
    "sizeof(struct ipt_replace)": xtables._REPLACEMENT.size,
    "sizeof(struct ip6t_replace)": xtables._REPLACEMENT.size,
    "offsetof(struct ipt_entry, nfcache)": xtables._HEADS[2],
    "offsetof(struct ip6t_entry, nfcache)": xtables._HEADS[10],
    "sizeof(struct xt_entry_match)": xtables._EXTENSION.size,
}


def test_numbers_of_networks_are_those_of_the_headers(tmp_path: Path) -> None:
    assert told_by_c(tmp_path, HEADERS, dict.fromkeys(OURS, "")) == OURS
