return run(function()
  check_format()
  local listed, answers = read('HGET', FLEET, 'keys'), {}
  local has_lost = count_keys(listed) < 0
  for index = 1, #ARGV, 4 do
    local shard, epoch, text = ARGV[index], ARGV[index + 1], string.sub(ARGV[index + 3], 2)
    local lease, stored = read('HGET', LEASES, shard), read('HGET', CHECKPOINTS, shard)
    -- After a loss, no shard has a lease until an exchange has noticed it.
    lease = not has_lost and lease
    local in_force = epoch == '' or lease and string.match(lease, '^%d+') == epoch
    local is_saved = in_force and argument_of(stored) == ARGV[index + 2]
    if is_saved then
      redis.call('HSET', KEYS[CHECKPOINTS], shard, text)
      redis.call('SETNX', KEYS[FORMAT], '1')
    end
    answers[#answers + 1] = is_saved and 1 or 0
    answers[#answers + 1] = argument_of(lease)
    answers[#answers + 1] = argument_of(is_saved and text or stored)
  end
  if listed and not has_lost and count_keys(listed) > 0 then
    list_keys()
  end
  return answers
end)
