# SPDX-License-Identifier: Apache-2.0
"""Any number of pictures, each answered exactly once, whatever crashes; needs the extra ``run``.

sources    a folder, a list, a table, archives: items
plan       what is asked of them, in shards; written once
work       one shard: pictures to a table of answers
ledger     what is done, by files that can be made only once
storage    whole files, on a disk that may lose power
local      processes that work, are watched, and start anew
running    all of it: estimate, start, status, verify
report     a page of what became of it
"""
