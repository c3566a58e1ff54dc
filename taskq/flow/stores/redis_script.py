"""The rules of `taskq.flow` in Lua: one script for each batch, which nobody can come between.

Function by function the same as `rules` and `returns`; a property test holds them together. Cells
are read once, kept in a table while the batch is judged, and written once at its end.
"""

from typing import Final

from taskq.results.redis_scripts import make_script

# KEYS: records of the batch's tasks, admission only. ARGV: what is asked, in msgpack; the prefix of
# all keys; the prefix of results; the moment, or 0 for the server's own clock.
# The slots of a cell are a hash (id: since and nonce) and a sorted set (id by the end of its
# lease), so that what one of them costs does not depend on how many are held.
CELLS: Final = """
local asked = cmsgpack.unpack(ARGV[1])
local prefix, results = ARGV[2] .. 'flow:', ARGV[3]
local slots_prefix, leases_prefix = ARGV[2] .. 'slots:', ARGV[2] .. 'leases:'
local now = tonumber(ARGV[4])
if now == 0 then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
local KEEP, HORIZON, LOOK = 3600000000, 1000000, 1000000
local cache, ttls, gone = {}, {}, {}
local counts, kept_us = {}, {}
local floor, max, min = math.floor, math.max, math.min

local function get(name)
  local state = cache[name]
  if state == nil and not gone[name] then
    local data = redis.call('GET', prefix .. name)
    state = data and cmsgpack.unpack(data) or false
    cache[name] = state
  end
  return state or nil
end

local function put(name, state, ttl)
  cache[name], ttls[name], gone[name] = state, ttl, nil
end

local function drop(name)
  cache[name], ttls[name], gone[name] = nil, nil, true
end

local function flush()
  for name, ttl in pairs(ttls) do
    redis.call('SET', prefix .. name, cmsgpack.pack(cache[name]),
      'PX', string.format('%.0f', max(1, math.ceil(ttl / 1000))))
  end
  for name in pairs(gone) do
    redis.call('DEL', prefix .. name)
  end
  for cell, span in pairs(kept_us) do
    local ms = string.format('%.0f', math.ceil(span / 1000))
    redis.call('PEXPIRE', slots_prefix .. cell, ms)
    redis.call('PEXPIRE', leases_prefix .. cell, ms)
  end
end

local function finished(id)
  local record = redis.call('GET', results .. id)
  return record and string.find('SFCE', string.sub(record, 1, 1), 1, true) ~= nil
end

local function number(value) return string.format('%.0f', value) end

local function held(cell)
  local count = counts[cell]
  if count then return count end
  local leases = leases_prefix .. cell
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', number(now))) do
    redis.call('ZREM', leases, id)
    redis.call('HDEL', slots_prefix .. cell, id)
  end
  count = redis.call('ZCARD', leases)
  counts[cell] = count
  return count
end

local function holder(cell, id)
  if held(cell) == 0 then return nil end
  local text = redis.call('HGET', slots_prefix .. cell, id)
  if not text then return nil end
  local since, nonce = string.match(text, '^(%d+) (.*)$')
  return {since = tonumber(since), nonce = nonce}
end

local function first_holder(cell)
  if held(cell) == 0 then return nil end
  return holder(cell, redis.call('ZRANGE', leases_prefix .. cell, 0, 0)[1])
end

local function hold(cell, id, til, nonce, since)
  local count = held(cell)
  redis.call('HSET', slots_prefix .. cell, id, number(since) .. ' ' .. nonce)
  counts[cell] = count + redis.call('ZADD', leases_prefix .. cell, number(til), id)
  kept_us[cell] = til - now + KEEP
end

local function unhold(cell, id)
  redis.call('HDEL', slots_prefix .. cell, id)
  counts[cell] = held(cell) - redis.call('ZREM', leases_prefix .. cell, id)
end

local function line_of(cell)
  local state = get(cell)
  if state and #state == 2 then return state[1], state[2] end
  return 0, 0
end
"""

_JUDGE: Final = """
local function has(text, letter)
  return string.find(text, letter, 1, true) ~= nil
end

local function wait(span) return {1, span} end

local function debounced(ask, waited, holder)
  if ask.attempt > 0 then return nil end
  local cell, span, sent = ask.unique[1], ask.unique[3], ask.unique[5]
  if not has(waited, 'u') then
    local state = get(cell)
    if sent == 0 then sent = now end
    if state and holder ~= '' and holder ~= ask.id and state[4] > sent then
      return {4, 0, holder}
    end
    put(cell, {ask.id, now + span + KEEP, ask.nonce, sent}, span + KEEP)
    return wait(span)
  end
  if holder == '' or holder == ask.id then return nil end
  return {4, 0, holder}
end

local function unique(ask, waited)
  if not ask.unique then return nil end
  local cell, mode, span, claimed = unpack(ask.unique)
  local state = get(cell)
  local holder = ''
  if state and state[2] > now then holder = state[1] end
  if mode == 'b' then return debounced(ask, waited, holder) end
  if mode == 'w' and claimed then return nil end
  if holder ~= '' and holder ~= ask.id and mode ~= 'w' and finished(holder) then holder = '' end
  if holder == '' or holder == ask.id then
    local til = now + span
    if holder ~= '' and mode == 'w' then til = state[2] end
    put(cell, {ask.id, til, ask.nonce}, til - now)
    return nil
  end
  if ask.attempt == 0 and not ask.again and waited == '' then return {2, 0, holder} end
  if mode == 'd' then return wait(LOOK) end
  return nil
end

local function idempotency(ask)
  if not ask.idempotency then return nil end
  local state = get(ask.idempotency)
  if not state or state[3] <= now then return nil end
  if state[1] == 1 then return {3, 0, state[2]} end
  if state[2] == ask.id then return nil end
  return wait(LOOK)
end

local function breaker(ask)
  if not ask.breaker then return nil end
  local cell = ask.breaker[1]
  local state = get(cell)
  if not state or state[2] == 0 then return nil end
  local fails, til, probe, probe_til, tail = unpack(state)
  if now >= til and (probe == '' or probe == ask.id or probe_til <= now) then return nil end
  tail = max(now < til and til or now, tail) + 2000
  put(cell, {fails, til, probe, probe_til, tail}, tail - now + KEEP)
  return wait(tail - now)
end

local function tokens_of(cell, per_us, burst)
  local state = get(cell)
  if not state then return burst, 0 end
  return min(burst, state[1] + max(0, now - state[2]) * per_us), state[3]
end

local function budget(ask, waited)
  if not ask.budget or ask.attempt == 0 then return nil end
  local cell, _, per_us, burst = unpack(ask.budget)
  local tokens, tail = tokens_of(cell, per_us, burst)
  if tokens >= 1 and (has(waited, 'g') or tail <= now) then return nil end
  tail = max(now, tail) + min(10000000, max(50000, floor(1 / per_us)))
  put(cell, {tokens, now, tail}, tail - now + KEEP)
  return wait(tail - now)
end

local function slots(ask, waited, limits)
  if not ask.slots then return nil end
  local cell, bound = ask.slots[1], limits.slots
  if holder(cell, ask.id) then return nil end
  local tail, mean = line_of(cell)
  if held(cell) < bound and (has(waited, 'c') or tail <= now) then return nil end
  local first, took = first_holder(cell), mean
  if first then took = max(mean, now - first.since) end
  tail = max(now, tail) + floor(min(LOOK, max(1000, took / (2 * bound))))
  put(cell, {tail, mean}, tail - now + KEEP)
  return wait(tail - now)
end

local function arrivals(cell)
  local state = get(cell)
  if not state then return 0, 0 end
  return state[1], state[2]
end

local function rate(ask, waited, limits)
  if not ask.rate then return nil end
  local ahead = (limits.burst - 1) * limits.interval
  local actual, tail = arrivals(ask.rate[1])
  local start = max(now, (has(waited, 'r') and actual or tail) - ahead)
  if start <= now + HORIZON then return nil end
  start = max(now, tail - ahead)
  tail = max(start, tail) + limits.interval
  put(ask.rate[1], {actual, tail}, tail - now + KEEP)
  return wait(start - now)
end

local function take(ask)
  if ask.unique then
    local cell, mode = ask.unique[1], ask.unique[2]
    local state = get(cell)
    if mode == 's' and state and state[1] == ask.id then drop(cell) end
  end
  if ask.idempotency then
    put(ask.idempotency, {0, ask.id, now + ask.lease, ask.nonce}, ask.lease)
  end
  if ask.budget then
    local cell, share, per_us, burst = unpack(ask.budget)
    local tokens, tail = tokens_of(cell, per_us, burst)
    if ask.attempt == 0 then tokens = min(burst, tokens + share)
    else tokens = max(0, tokens - 1) end
    put(cell, {tokens, now, tail}, max(0, tail - now) + KEEP)
  end
  if ask.slots then
    hold(ask.slots[1], ask.id, now + ask.lease, ask.nonce, now)
  end
  if not ask.breaker then return false end
  local cell = ask.breaker[1]
  local state = get(cell)
  if not state or state[2] == 0 then return false end
  put(cell, {state[1], state[2], ask.id, now + ask.lease, state[5]},
    max(0, state[5] - now) + ask.lease + KEEP)
  return true
end

local function take_token(ask, waited, limits)
  if not ask.rate then return now end
  local ahead = (limits.burst - 1) * limits.interval
  local actual, tail = arrivals(ask.rate[1])
  local promised = has(waited, 'r')
  local start = max(now, (promised and actual or tail) - ahead)
  actual = max(start, actual) + limits.interval
  if promised then tail = max(tail, actual)
  else tail = max(max(start, tail) + limits.interval, actual) end
  put(ask.rate[1], {actual, tail}, tail - now + KEEP)
  return start
end

local function limits_of(ask, changed)
  local found = {slots = 0}
  if ask.rate then found.interval, found.burst = ask.rate[2], ask.rate[3] end
  if ask.slots then found.slots = ask.slots[2] end
  local rate_now, slots_now = changed['r' .. ask.task], changed['c' .. ask.task]
  if ask.rate and rate_now then found.interval, found.burst = rate_now[1], rate_now[2] end
  if ask.slots and slots_now then found.slots = slots_now end
  return found
end

local gates = {{'u', unique}, {'i', idempotency}, {'b', breaker}, {'g', budget}, {'c', slots},
  {'r', rate}}

local function judge(ask)
  local settings = get('s:0::') or {0, {}}
  local version, changed = settings[1], settings[2]
  local waited = ask.waited
  if ask.at > now + HORIZON then
    if ask.version == version then return {1, ask.at - now, waited, ask.at, version, '', false} end
    waited = string.sub(waited, 1, -2)
  end
  local limits = limits_of(ask, changed)
  for _, gate in ipairs(gates) do
    local verdict = gate[2](ask, waited, limits)
    if verdict then
      if verdict[1] == 1 then
        local letter = gate[1]
        return {1, verdict[2], string.gsub(waited, letter, '') .. letter, now + verdict[2],
          version, '', false}
      end
      return {verdict[1], 0, '', 0, 0, verdict[3], false}
    end
  end
  local probe = take(ask)
  return {0, take_token(ask, waited, limits) - now, '', 0, 0, '', probe}
end

local records = redis.call('MGET', unpack(KEYS))
local verdicts, done = {}, {}
local commons = asked[1]
for i, f in ipairs(asked[2]) do
  local record, common = records[f[1]], commons[f[2]]
  local ask = {id = f[3], attempt = f[4], again = f[5], nonce = f[6], waited = f[7], at = f[8],
    version = f[9], unique = f[10], idempotency = f[11] ~= '' and f[11], task = common[1],
    lease = common[2], breaker = common[3], budget = common[4], slots = common[5],
    rate = common[6]}
  local verdict
  if record and #record >= 5 and (string.find('SFCE', string.sub(record, 1, 1), 1, true)
      or floor(struct.unpack('>I4', record, 2) / 256) > ask.attempt) then
    verdict = {5, 0, '', 0, 0, '', false}
  else
    verdict = judge(ask)
  end
  if verdict[1] == 3 then
    done[#done + 1] = i
    done[#done + 1] = redis.call('GET', results .. verdict[6])
  end
  -- Most start at once, and say no more than that.
  if verdict[1] == 0 and verdict[2] == 0 and not verdict[7] then verdict = 0 end
  verdicts[i] = verdict
end
flush()
return {records, cmsgpack.pack(verdicts), done}
"""

ADMIT: Final = make_script(CELLS + _JUDGE)
