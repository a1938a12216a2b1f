"""What the Redis store has changed in one step: scripts that compare a claim and change its session, and what the keys are.

| key (after the prefix) | is |
|---|---|
| `incarnation` | a string that is missing where Redis lost what it had |
| `epoch` | the counter of epochs |
| `holder:H` | server H's lease: the number of its last renewal, and of the first since which it never lapsed |
| `holders` | servers that may hold sessions |
| `held:H` | keys of sessions that H claimed, and others may have taken since |
| `session:O:N` | a session: its claim and, once saved, its record; without an end while it is claimed |
| `names:O` | names of owner O's stored sessions; some may be gone |
| `grave:O:N` | why the session is gone, if it is: an expiry is written beforehand, when the session is saved |

A call that is late (sent before another one of this store that was carried out already, and delayed by the network) changes nothing: each carries a number that
grows, and a session keeps the number of its last change and, as `by`, whose number it is. For a while a session that is gone keeps that much too.
"""

GONE_MS = 120_000
"""For so long late calls are told from others after a session is gone: for longer than a connection lives that its owner has given up."""

# ARGV: holder, by, number, epoch.
_MINE = (
    """
local kept = redis.call('HMGET', KEYS[1], 'epoch', 'holder', 'by', 'number')
if kept[3] == ARGV[2] and kept[4] == ARGV[3] then return 1 end
if kept[1] ~= ARGV[4] or kept[2] ~= ARGV[1] then return 0 end
if kept[3] == ARGV[2] and tonumber(kept[4]) > tonumber(ARGV[3]) then return 0 end
local function clear()
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[4], 'holder', '', 'by', ARGV[2], 'number', ARGV[3], 'clean', '1')
"""
    f"  redis.call('PEXPIRE', KEYS[1], {GONE_MS})"
    """
end
"""
)
_LENGTHEN = """
local function lengthen(key, ends)
  redis.call('PEXPIREAT', key, ends, 'NX')
  redis.call('PEXPIREAT', key, ends, 'GT')
end
"""
_ENDS = """
local function ends_ms(session, more_ms)
  return string.format('%.0f', math.floor(tonumber(redis.call('HGET', session, 'expires_s')) * 1000) + tonumber(more_ms))
end
"""

# KEYS: session, counter of epochs, what this server holds.
# ARGV: holder, by, number, number of the first claim since the last one that was answered, highest epoch seen, what keys of leases begin with.
CLAIM = """
local kept = redis.call('HMGET', KEYS[1], 'epoch', 'holder', 'by', 'number', 'clean', 'uid', 'position', 'expires_s', 'data')
local holder, again = kept[2], kept[3] == ARGV[2]
if again and tonumber(kept[4]) > tonumber(ARGV[3]) then return {'late'} end
local clean = kept[5] or '1'
if holder == ARGV[1] then
  if not again or tonumber(kept[4]) < tonumber(ARGV[4]) then clean = '0' end
elseif holder and holder ~= '' then
  local left = redis.call('PTTL', ARGV[6] .. holder)
  if left > 0 then return {'held', holder, left} end
  clean = '0'
end
local epoch = redis.call('INCR', KEYS[2])
if epoch <= tonumber(ARGV[5]) then
  epoch = tonumber(ARGV[5]) + 1
  redis.call('SET', KEYS[2], string.format('%.0f', epoch))
end
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch), 'holder', ARGV[1], 'by', ARGV[2], 'number', ARGV[3], 'clean', clean)
redis.call('PERSIST', KEYS[1])
redis.call('SADD', KEYS[3], KEYS[1])
return {'', epoch, clean, kept[6], kept[7], kept[8], kept[9]}
"""

# Undo a claim whose answer was lost, as if it had not been.
# KEYS: session, what this server holds. ARGV: holder, by, number, number of the first such claim, milliseconds it stays beyond its end.
UNCLAIM = (
    _ENDS
    + """
local kept = redis.call('HMGET', KEYS[1], 'holder', 'by', 'number')
if kept[1] ~= ARGV[1] or kept[2] ~= ARGV[2] then return 0 end
if tonumber(kept[3]) > tonumber(ARGV[3]) or tonumber(kept[3]) < tonumber(ARGV[4]) then return 0 end
redis.call('SREM', KEYS[2], KEYS[1])
if redis.call('HEXISTS', KEYS[1], 'data') == 0 then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'holder', '', 'number', ARGV[3])
redis.call('PEXPIREAT', KEYS[1], ends_ms(KEYS[1], ARGV[5]))
return 1
"""
)

# KEYS: session, what this server holds, names of its owner.
# ARGV: holder, by, number, epoch, name, milliseconds it stays beyond its end, milliseconds that names are kept beyond it, whether clean.
RELEASE = (
    _MINE
    + _ENDS
    + _LENGTHEN
    + """
redis.call('SREM', KEYS[2], KEYS[1])
if redis.call('HEXISTS', KEYS[1], 'data') == 0 then clear() return 1 end
redis.call('HSET', KEYS[1], 'holder', '', 'by', ARGV[2], 'number', ARGV[3], 'clean', ARGV[8])
redis.call('SADD', KEYS[3], ARGV[5])
lengthen(KEYS[3], ends_ms(KEYS[1], ARGV[7]))
redis.call('PEXPIREAT', KEYS[1], ends_ms(KEYS[1], ARGV[6])) -- last: where that time has passed, the session is gone at once
return 1
"""
)

# Many at once, so that they are one write of Redis to its disk.
# KEYS, for each: session, names of its owner, its grave.
# ARGV: holder, by, number, milliseconds that graves are kept; for each: epoch, name, uid, position, expires_s, data.
SAVE = (
    _ENDS
    + _LENGTHEN
    + """
local stored = {}
for i = 1, #KEYS / 3 do
  local session, names, grave, at = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i], 6 * i - 2
  local kept = redis.call('HMGET', session, 'epoch', 'holder', 'by', 'number')
  local late = kept[3] == ARGV[2] and tonumber(kept[4]) > tonumber(ARGV[3])
  if kept[1] ~= ARGV[at + 1] or kept[2] ~= ARGV[1] or late then
    stored[i] = 0
  else
    redis.call('HSET', session, 'by', ARGV[2], 'number', ARGV[3],
      'uid', ARGV[at + 3], 'position', ARGV[at + 4], 'expires_s', ARGV[at + 5], 'data', ARGV[at + 6])
    local ends = ends_ms(session, ARGV[4])
    redis.call('SADD', names, ARGV[at + 2])
    lengthen(names, ends)
    redis.call('SET', grave, 'SESSION_EXPIRED ' .. ARGV[at + 4], 'PXAT', ends)
    stored[i] = 1
  end
end
return stored
"""
)

# KEYS: session, what this server holds, names of its owner, its grave. ARGV: holder, by, number, epoch, name, what to remember or '', milliseconds for which.
REMOVE = (
    _MINE
    + """
clear()
redis.call('SREM', KEYS[2], KEYS[1])
redis.call('SREM', KEYS[3], ARGV[5])
if ARGV[6] == '' then redis.call('DEL', KEYS[4]) else redis.call('SET', KEYS[4], ARGV[6], 'PX', ARGV[7]) end
return 1
"""
)

# KEYS: lease, holders, incarnation. ARGV: holder, number, number of the last renewal that was answered or '', milliseconds, an incarnation for a Redis without.
RENEW = """
local number, since = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+)$')
if ARGV[3] == '' or not number or tonumber(number) < tonumber(ARGV[3]) then since = ARGV[2] end
redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. since, 'PX', ARGV[4])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('SET', KEYS[3], ARGV[5], 'NX')
return {tonumber(since), redis.call('GET', KEYS[3]), string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')}
"""

# Keep what is still this server's: it may have been given an end while the lease had lapsed. KEYS: session, what this server holds. ARGV: holder, epoch.
KEEP = """
local kept = redis.call('HMGET', KEYS[1], 'epoch', 'holder')
if kept[1] ~= ARGV[2] or kept[2] ~= ARGV[1] then return 0 end
redis.call('PERSIST', KEYS[1])
redis.call('SADD', KEYS[2], KEYS[1])
return 1
"""

# Give an end to what a server holds whose lease has lapsed. It is left to that server for a while, in case it comes back.
# KEYS: lease, what that server holds, holders. ARGV: holder, how many at most, milliseconds it stays beyond its end, milliseconds that it is left.
SWEEP = (
    _ENDS
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local time = redis.call('TIME')
local soonest = string.format('%.0f', tonumber(time[1]) * 1000 + tonumber(ARGV[4]))
local held = redis.call('SPOP', KEYS[2], ARGV[2])
for _, session in ipairs(held) do
  if redis.call('HGET', session, 'holder') == ARGV[1] then
    redis.call('PEXPIREAT', session, soonest)
    if redis.call('HEXISTS', session, 'data') == 1 then redis.call('PEXPIREAT', session, ends_ms(session, ARGV[3]), 'GT') end
  end
end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SREM', KEYS[3], ARGV[1]) end
return #held
"""
)

# Return which names are of stored sessions and strike out the others. KEYS: names of an owner, sessions of these names. ARGV: names.
STORED = """
local stored = {}
for i, name in ipairs(ARGV) do
  stored[i] = redis.call('HEXISTS', KEYS[i + 1], 'data')
  if stored[i] == 0 then redis.call('SREM', KEYS[1], name) end
end
return stored
"""
